"""Siblings: linear sites that read one value, such as query and key, written as one site and back.

    x·W₁ + b₁, …, x·Wₛ + bₛ    =    Split(x·[W₁ … Wₛ] + [b₁ … bₛ])

:class:`JoinSiblingsPass` goes to the right. What it makes is an ordinary site of shape [K, ΣN], so
everything that factors sites factors it too, and its factors share one ``down``: r·(K + ΣN)
parameters instead of Σ rᵢ·(K + Nᵢ). :class:`PartSiblingsPass` then goes back to the left, ::

    Split((x·down)·[up₁ … upₛ] + b)    =    (x·down)·up₁ + b₁, …, (x·down)·upₛ + bₛ

because separate products are faster than one whose result is copied (docs/siblings.md).

Rules:

1. Siblings are MatMuls at the top level that read the same value, each with a plain matrix on its
   right that nobody else reads, of the same type, and with biases that have as many axes, or none.
2. The values behind the siblings (behind their biases) keep their names, types and shapes.
3. Weights and biases are read, never edited: others may share a bias.
4. Only the Split that joining wrote is taken apart; nodes that are dead then are left to cleanup.
5. Factors that the file holds in a smaller type cannot be taken apart: siblings that are to be
   stored so must not be joined.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate, chain, pairwise

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.rewriting.initializers import Sink, in_memory, register
from compress_onnx.graph_passes.sites.families import Siblings, bias_axes, families, joined_name
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import (
    SIBLINGS_PROPERTY,
    LinearSite,
    factored_names,
)
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import read

_SIZES_ARE_AN_INPUT = 13
"""The opset from which Split takes its sizes as an input instead of an attribute."""


class JoinSiblingsPass(ir.passes.InPlacePass):
    """Write groups of siblings as one site each; those that are one already stay so.

    Args:
        groups: names of the sites of each group, in graph order.
    """

    def __init__(self, groups: Sequence[Collection[str]]) -> None:
        super().__init__()
        self._groups = groups

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Join every group.

        Raises:
            RequestError: a group is not of siblings, or two have one in common; nothing was changed
                then.
        """
        sites = find_sites(model).sites
        joined = [set(site.siblings) for site in sites if site.siblings]
        factored = factored_names(model)
        groups = [
            group
            for group in self._groups
            if not group or (set(group) not in joined and joined_name([*group]) not in factored)
        ]
        _check_groups(groups, sites)
        names = UniqueNames(value_names(model), separator="_")
        opset = model.opset_imports[""]
        for group in groups:
            _join([site for site in sites if site.name in group], names, opset)
        return ir.passes.PassResult(model, modified=bool(groups))


def _check_groups(groups: Sequence[Collection[str]], sites: Sequence[LinearSite]) -> None:
    allowed = [{site.name for site in family} for family in families(sites)]
    for group in groups:
        if len(set(group)) < 2 or not any(set(group) <= family for family in allowed):
            raise RequestError(f"{', '.join(group)}: no siblings that could share a factor")
    for name, count in Counter(chain.from_iterable(map(set, groups))).items():
        if count > 1:
            raise RequestError(f"{name} is in {count} groups of siblings: leave it in one of them")


def _join(siblings: Siblings, names: UniqueNames, opset: int) -> None:
    first = siblings[0]
    graph = first.node.graph
    assert isinstance(graph, ir.Graph)
    name = joined_name([site.name for site in siblings])
    mark = {SIBLINGS_PROPERTY: json.dumps({s.name: s.node.name for s in siblings})}
    product = ir.node(
        "MatMul",
        [first.input, _joined_weight(graph, siblings, names)],
        name=names(name),
        metadata_props=mark,
    )
    nodes = [product]
    if first.bias is not None:
        bias = _joined_bias(graph, siblings, names)
        nodes.append(ir.node("Add", [product.outputs[0], bias], name=names(f"{name}.bias")))
    nodes.append(_split(graph, nodes[-1].outputs[0], siblings, names, opset))
    for node in nodes[:-1]:
        node.outputs[0].name = names(f"{node.name}.output")
        node.outputs[0].type = first.node.outputs[0].type
        node.outputs[0].shape = _widened(first.node.outputs[0].shape, siblings)
    ends = [site.node if site.bias is None else site.bias.node for site in siblings]
    ir.convenience.replace_nodes_and_values(
        graph,
        first.node,
        list(dict.fromkeys([*ends, *(site.node for site in siblings)])),
        nodes,
        [end.outputs[0] for end in ends],
        nodes[-1].outputs,
    )


def _joined_weight(graph: ir.Graph, siblings: Siblings, names: UniqueNames) -> ir.Value:
    """``[K, ΣN]``, made whenever it is read, so that a large model is never in memory twice."""
    first = siblings[0].weight.initializer
    assert first.const_value is not None
    weights, dtype = [site.weight for site in siblings], first.const_value.dtype
    shape = ir.Shape((siblings[0].in_features, sum(site.out_features for site in siblings)))
    name = names(f"{first.name}.siblings")

    def make() -> ir.TensorProtocol:
        return ir.Tensor(np.hstack([weight.array() for weight in weights]), dtype=dtype, name=name)

    tensor = ir.LazyTensor(make, dtype, shape, name=name)
    return register(graph, tensor)


def _joined_bias(graph: ir.Graph, siblings: Siblings, names: UniqueNames) -> ir.Value:
    """``[1, …, ΣN]`` with as many axes as each of them."""
    parts: list[Array] = []
    for site in siblings:
        assert site.bias is not None
        assert site.bias.value.const_value is not None
        flat = read(site.bias.value.const_value).reshape(-1)
        parts.append(np.broadcast_to(flat, (site.out_features,)))
    joined = np.concatenate(parts).reshape((1,) * ((bias_axes(siblings[0]) or 1) - 1) + (-1,))
    bias = siblings[0].bias
    assert bias is not None
    assert bias.value.const_value is not None
    name = names(f"{bias.value.name}.siblings")
    return register(graph, ir.Tensor(joined, dtype=bias.value.const_value.dtype, name=name))


def _split(
    graph: ir.Graph, value: ir.Value, siblings: Siblings, names: UniqueNames, opset: int
) -> ir.Node:
    sizes = [site.out_features for site in siblings]
    mark = {SIBLINGS_PROPERTY: json.dumps(sizes)}
    if opset < _SIZES_ARE_AN_INPUT:
        attributes: dict[str, int | list[int]] = {"axis": -1, "split": sizes}
        return ir.node("Split", [value], attributes, num_outputs=len(sizes), metadata_props=mark)
    name = names("siblings.sizes")
    stored = register(graph, ir.Tensor(np.array(sizes, np.int64), name=name))
    return ir.node(
        "Split", [value, stored], {"axis": -1}, num_outputs=len(sizes), metadata_props=mark
    )


def _widened(shape: ir.Shape | None, siblings: Siblings) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([*list(shape)[:-1], sum(site.out_features for site in siblings)])


class PartSiblingsPass(ir.passes.InPlacePass):
    """Take apart what :class:`JoinSiblingsPass` joined: one product and bias a sibling again.

    Args:
        sink: where the parts of weights go.
    """

    def __init__(self, sink: Sink = in_memory) -> None:
        super().__init__()
        self._sink = sink

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take every joined site apart, factored or not."""
        splits = [
            node
            for node in model.graph
            if node.op_type == "Split" and SIBLINGS_PROPERTY in node.metadata_props
        ]
        names = UniqueNames(value_names(model), separator="_")
        for split in splits:
            value = split.inputs[0]
            assert value is not None
            parts = _Parts(json.loads(split.metadata_props[SIBLINGS_PROPERTY]), names, self._sink)
            ends = parts.of(value)
            ir.convenience.replace_nodes_and_values(
                model.graph, split, [split], parts.nodes, split.outputs, ends
            )
        return ir.passes.PassResult(model, modified=bool(splits))


class _Parts:
    """Writes a value that joining widened as its parts, one a sibling."""

    def __init__(self, sizes: Sequence[int], names: UniqueNames, sink: Sink) -> None:
        self._sizes = sizes
        self._names = names
        self._sink = sink
        self.nodes: list[ir.Node] = []

    def of(self, value: ir.Value) -> list[ir.Value]:
        """The parts of ``value``: slices of a weight, or what is computed from such slices."""
        node = value.producer()
        if node is None:
            return self._slices(value)
        left, right = node.inputs
        assert left is not None
        assert right is not None
        if node.op_type == "MatMul":
            operands = [[left, part] for part in self.of(right)]
        else:  # an Add: of the bias, of its correction, or of two terms
            operands = [list(pair) for pair in zip(self.of(left), self.of(right), strict=True)]
        return [self._node(node, index, inputs) for index, inputs in enumerate(operands)]

    def _slices(self, weight: ir.Value) -> list[ir.Value]:
        assert weight.const_value is not None
        assert weight.graph is not None
        array, dtype = read(weight.const_value), weight.const_value.dtype
        values = []
        for index, (start, stop) in enumerate(pairwise(accumulate(self._sizes, initial=0))):
            name = self._names(f"{weight.name}.{index}")
            part = np.ascontiguousarray(array[..., start:stop])
            values.append(register(weight.graph, self._sink(part, dtype, name)))
        return values

    def _node(self, joined: ir.Node, index: int, inputs: Sequence[ir.Value]) -> ir.Value:
        value = joined.outputs[0]
        output = ir.Value(name=self._names(f"{value.name}.{index}"), type=value.type)
        if value.shape is not None:
            output.shape = ir.Shape([*list(value.shape)[:-1], self._sizes[index]])
        properties = {k: v for k, v in joined.metadata_props.items() if k != SIBLINGS_PROPERTY}
        self.nodes.append(
            ir.Node(
                "",
                joined.op_type,
                inputs,
                outputs=[output],
                name=self._names(f"{joined.name}.{index}"),
                metadata_props=properties,
            )
        )
        return output
