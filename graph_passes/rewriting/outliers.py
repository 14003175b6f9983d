"""Take a few neurons of a feed-forward network aside, into a branch that stays in float.

With S the neurons aside and R the others, the network is split in two that add up::

    f(x·W₁ + b₁)·W₂ + b₂  =  f(x·W₁[:, R] + b₁[R])·W₂[R] + b₂  +  f(x·W₁[:, S] + b₁[S])·W₂[S]

Neurons that reach far beyond the others would make the one scale, by which integers of the hidden
value are read, coarse for all. Two thin products are cheaper than that. It is SVDLoRA's picture: a
sum of parts, each stored as suits it.

Rules:

1. The branch is added behind the bias of the down layer, so that this stays what it is.
2. Its nodes are marked as float (:data:`~graph_passes.rewriting.integers.FLOAT_PROPERTY`).
3. The value that comes out keeps its name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array, Indices
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.rewriting.initializers import Sink, in_memory, register
from compress_onnx.graph_passes.rewriting.integers import FLOAT_PROPERTY
from compress_onnx.graph_passes.rewriting.neurons import NeuronsPass, as_read, target_of
from compress_onnx.graph_passes.sites.ffn import FFN, find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import read

_PROPERTIES = {FLOAT_PROPERTY: "outliers"}


class OutliersPass(ir.passes.InPlacePass):
    """Split networks.

    Args:
        aside: by the name of the down layer, the neurons ``[n]`` that go into the branch.
        sink: where the new weights go.
    """

    def __init__(self, aside: Mapping[str, Indices], *, sink: Sink = in_memory) -> None:
        super().__init__()
        self._aside = aside
        self._sink = sink

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split every network that has neurons to take aside.

        Raises:
            RequestError: the model lacks one of them, or it has no such neurons; nothing was
                changed then.
        """
        ffns = {ffn.name: ffn for ffn in find_ffns(find_sites(model).sites).ffns}
        others: dict[str, Folded] = {}
        for name, aside in self._aside.items():
            ffn = ffns.get(name)
            if ffn is None:
                raise RequestError(f"the model has no feed-forward network that ends in {name!r}")
            inside = len(aside) and 0 <= aside.min() <= aside.max() < ffn.neurons
            if not inside or len(aside) >= ffn.neurons:
                raise RequestError(f"{name} has {ffn.neurons} neurons: these cannot go aside")
            rest = np.setdiff1d(np.arange(ffn.neurons), aside)
            weight = ffn.down.weight.array()[rest].astype(np.float64)
            others[name] = Folded(rest, weight, np.zeros(ffn.down.out_features))
        names = UniqueNames(value_names(model), separator="_")
        for name, aside in self._aside.items():
            _Branch(ffns[name], np.sort(aside), names, self._sink).add()
        # A branch may have taken the name of what it is a branch of.
        named = {ffn.down.node: ffn.name for ffn in find_ffns(find_sites(model).sites).ffns}
        others = {named[ffns[name].down.node]: rest for name, rest in others.items()}
        NeuronsPass(others, sink=self._sink, biases=False)(model)
        return ir.passes.PassResult(model, modified=bool(others))


class _Branch:
    """Writes the branch of one network."""

    def __init__(self, ffn: FFN, aside: Indices, names: UniqueNames, sink: Sink) -> None:
        graph = ffn.down.node.graph
        assert graph is not None
        self._ffn = ffn
        self._aside = aside
        self._names = names
        self._sink = sink
        self._graph = graph
        self._nodes: list[ir.Node] = []
        self._made: dict[ir.Value, ir.Value] = {}
        self._constants = {
            (node, index): self._constant(node.inputs[index]) for node, index in ffn.constants
        }

    def add(self) -> None:
        """Put the branch in front of the node whose output it is added to."""
        ffn, down = self._ffn, self._ffn.down
        for up in ffn.ups:
            columns = as_read(up, up.weight.array()[:, self._aside])
            self._copy(up.node, {up.weight_index: self._weight(up.weight.initializer, columns)})
        order = {node: place for place, node in enumerate(self._graph)}
        for node in sorted(ffn.between, key=order.__getitem__):
            told = node in ffn.told
            target = {1: target_of(node, len(self._aside), self._names)} if told else {}
            self._copy(node, target)
        weight = self._weight(
            down.weight.initializer, as_read(down, down.weight.array()[self._aside])
        )
        last = down.node if down.bias is None else down.bias.node
        old = last.outputs[0]
        product = self._copy(down.node, {down.weight_index: weight}, inputs=2)
        total = ir.Node(
            "",
            "Add",
            [old, product],
            outputs=[self._value(old)],
            name=self._names(f"{last.name}.outliers"),
            metadata_props=dict(_PROPERTIES),
        )
        self._graph.insert_before(down.node, self._nodes)
        self._graph.insert_after(last, total)
        name, result = old.name, total.outputs[0]
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        total.replace_input_with(0, old)
        old.name, result.name = self._names(f"{name}.others"), name

    def _copy(
        self, node: ir.Node, replaced: Mapping[int, ir.Value], inputs: int | None = None
    ) -> ir.Value:
        """``node`` once more, for the neurons aside; ``inputs`` of it, all without."""
        operands = [
            replaced.get(index)
            or self._constants.get((node, index))
            or (None if value is None else self._made.get(value, value))
            for index, value in enumerate(node.inputs[:inputs])
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            operands,
            node.attributes.values(),
            outputs=[self._value(value) for value in node.outputs],
            name=self._names(f"{node.name}.outliers"),
            metadata_props=dict(_PROPERTIES),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            if old.shape is not None and len(old.shape) and node is not self._ffn.down.node:
                new.shape = ir.Shape([*list(old.shape)[:-1], len(self._aside)])
            self._made[old] = new
        self._nodes.append(copy)
        return copy.outputs[0]

    def _value(self, like: ir.Value) -> ir.Value:
        shape = None if like.shape is None else like.shape.copy()
        return ir.Value(name=self._names(f"{like.name}.outliers"), shape=shape, type=like.type)

    def _constant(self, value: ir.Value | None) -> ir.Value:
        assert value is not None
        assert value.const_value is not None
        return self._weight(value, read(value.const_value)[..., self._aside])

    def _weight(self, owner: ir.Value, numbers: Array) -> ir.Value:
        assert owner.graph is not None
        assert owner.const_value is not None
        name = self._names(f"{owner.name}.outliers")
        kept = self._sink(np.ascontiguousarray(numbers), owner.const_value.dtype, name)
        return register(owner.graph, kept)
