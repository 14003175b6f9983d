"""Take neurons out of feed-forward networks.

With S the neurons that stay (:mod:`graph_passes.factorization.neurons`)::

    f(x·W₁ + b₁)·W₂ + b₂   ->   f(x·W₁[:, S] + b₁[S])·W' + b'

Rules:

1. No node is added, but for an Add where the down layer has no bias to correct, and a Concat for
   the target of a Reshape that was told their number by one.
2. Operands with a number for each neuron (biases, slopes) keep those of S.
3. No initializer is edited in place: each new one stands beside the one that it replaces, under a
   name of its own, and recorded shapes of the hidden values follow.
4. Numbers are computed for the whole model before the graph changes.
5. Each node with new numbers has its role in the network in its metadata.
6. Networks in the branches of an If that share their weights, and lose the same neurons, share the
   new ones too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.factorization.storage import rounded
from compress_onnx.graph_passes.rewriting.initializers import (
    Initializers,
    Kept,
    Sink,
    in_memory,
    register,
)
from compress_onnx.graph_passes.rewriting.replacement import corrected_bias
from compress_onnx.graph_passes.sites.ffn import FFN, find_ffns
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import NEURONS_PROPERTY, LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.reshaping import end_of_target, front_of_target, numbers
from compress_onnx.graph_passes.sites.weights import read

_ROLE = "neurons"


@dataclass(frozen=True)
class _Operand:
    """New numbers for the operand at ``index`` of ``node``; ``old`` is what they replace."""

    node: ir.Node
    index: int
    old: ir.Value
    new: Kept
    role: str


class NeuronsPass(ir.passes.InPlacePass):
    """Leave in each network the neurons that were chosen.

    Args:
        chosen: by the name of the down layer, what stays of the network.
        sink: where the new weights go; a model that does not fit into memory needs another place.
        biases: whether those of the down layers change.
        told: what the products of each network tell about it, by the name of the down layer
            (:mod:`graph_passes.rewriting.told`).
    """

    def __init__(
        self,
        chosen: Mapping[str, Folded],
        *,
        sink: Sink = in_memory,
        biases: bool = True,
        told: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self._told = told or {}
        self._chosen = chosen
        self._sink = sink
        self._biases = biases

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every network that was chosen.

        Raises:
            RequestError: the model lacks one of them or has it with another size, or the new
                numbers do not fit into its types; nothing was changed then.
        """
        sites = find_sites(model).sites
        ffns = {ffn.name: ffn for ffn in find_ffns(sites, branches_share=True).ffns}
        for name, folded in self._chosen.items():
            _check(name, ffns.get(name), folded)
        names = UniqueNames(value_names(model), separator="_")
        initializers = _Shared(Initializers(names, self._sink))
        prepared = [
            (ffns[name], list(_operands(ffns[name], folded, initializers)))
            for name, folded in self._chosen.items()
        ]
        biases = {
            name: initializers.keep(
                folded,
                ffns[name].down.weight.initializer,
                f"{_ROLE}.bias",
                corrected_bias(ffns[name].down, folded.bias),
            )
            for name, folded in self._chosen.items()
            if self._biases
        }
        for ffn, operands in prepared:
            for operand in operands:
                value = initializers.place(operand.old, operand.new)
                operand.node.replace_input_with(operand.index, value)
                operand.node.metadata_props.setdefault(NEURONS_PROPERTY, operand.role)
                if operand.role in {"up", "down"}:
                    operand.node.metadata_props.update(self._told.get(ffn.name, {}))
            neurons = len(self._chosen[ffn.name].kept)
            for node in ffn.told:
                node.replace_input_with(1, target_of(node, neurons, names))
            _shrink(ffn, neurons)
            if ffn.name in biases:
                owner = ffn.down.weight.initializer
                _set_bias(ffn.down, initializers.place(owner, biases[ffn.name]))
        return ir.passes.PassResult(model, modified=bool(prepared))


class _Shared:
    """Initializers of which those with one origin are one (rule 6)."""

    def __init__(self, initializers: Initializers) -> None:
        self._initializers = initializers
        self._kept: dict[tuple[int, ir.Value, str], Kept] = {}
        self._placed: dict[str, ir.Value] = {}

    def keep(self, folded: Folded, old: ir.Value, role: str, new: Array) -> Kept:
        """What ``folded`` makes of the initializer ``old``; of ``new`` the first time."""
        key = (id(folded), old, role)
        if key not in self._kept:
            self._kept[key] = self._initializers.keep(old, role, new)
        return self._kept[key]

    def place(self, old: ir.Value, kept: Kept) -> ir.Value:
        """The value of ``kept`` beside ``old``."""
        if kept.name not in self._placed:
            self._placed[kept.name] = self._initializers.place(old, kept, {})
        return self._placed[kept.name]


def _check(name: str, ffn: FFN | None, folded: Folded) -> None:
    if ffn is None:
        raise RequestError(f"the model has no feed-forward network that ends in {name!r}")
    shape = (ffn.neurons, ffn.down.out_features)
    if folded.weight.shape[1] != shape[1] or folded.kept[-1] >= shape[0]:
        raise RequestError(f"{name} is a layer of shape {shape}: the neurons are another model's")


def _operands(ffn: FFN, folded: Folded, initializers: _Shared) -> Iterator[_Operand]:
    """All operands that change, with their new numbers in the sink."""

    def kept(node: ir.Node, index: int, old: ir.Value, new: Array, role: str) -> _Operand:
        return _Operand(node, index, old, initializers.keep(folded, old, _ROLE, new), role)

    for up in ffn.ups:
        columns = up.weight.array()[:, folded.kept]  # [K, k]
        yield kept(up.node, up.weight_index, up.weight.initializer, as_read(up, columns), "up")
    for node, index in ffn.constants:
        old = node.inputs[index]
        assert old is not None
        assert old.const_value is not None
        yield kept(node, index, old, read(old.const_value)[..., folded.kept], "between")
    down = ffn.down
    numbers = down.weight.initializer.const_value
    assert numbers is not None
    try:
        weight = rounded(folded.weight, numbers.dtype.numpy())
    except RequestError as error:
        raise RequestError(f"the down layer of {ffn.name}: {error}") from error
    yield kept(down.node, down.weight_index, down.weight.initializer, as_read(down, weight), "down")


def as_read(site: LinearSite, weight: Array) -> Array:
    """``weight`` [K, N] as the site's node reads it, without views in between."""
    transposed = site.node.op_type == "Gemm" and site.node.attributes.get_int("transB", False)
    return weight.T if transposed else weight


def target_of(reshape: ir.Node, neurons: int, names: UniqueNames) -> ir.Value:
    """The target of a Reshape that is told so many ``neurons``."""
    graph, target = reshape.graph, reshape.inputs[1]
    assert graph is not None
    assert target is not None
    name = names(f"{target.name}.{_ROLE}")
    front = front_of_target(reshape)
    told = [*(numbers(end_of_target(reshape)) or [0])[:-1], neurons]
    constant = ir.tensor(np.array(told, np.int64), name=names(f"{name}.end") if front else name)
    value = register(graph, constant)
    if not front:
        return value
    output = ir.Value(name=name, shape=target.shape, type=target.type)
    concat = ir.Node(
        "",
        "Concat",
        [*front, value],
        ir.convenience.convert_attributes({"axis": 0}),
        outputs=[output],
        name=name,
    )
    graph.insert_before(reshape, concat)
    return output


def _shrink(ffn: FFN, neurons: int) -> None:
    """Rule 3, for recorded shapes."""
    for value in ffn.hidden:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([*list(value.shape)[:-1], neurons])


def _set_bias(down: LinearSite, bias: ir.Value) -> None:
    """Let ``down`` add ``bias`` in place of its own."""
    if down.bias is not None:
        down.bias.node.replace_input_with(down.bias.index, bias)
        down.bias.node.metadata_props.setdefault(NEURONS_PROPERTY, "bias")
        if down.node.op_type == "Gemm":
            # The new one has beta in it.
            down.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        return
    node, old = down.node, down.node.outputs[0]
    assert node.graph is not None
    product, total = (
        ir.Value(
            name=f"{bias.name}.{part}",
            shape=None if old.shape is None else old.shape.copy(),
            type=old.type,
        )
        for part in ("product", "sum")
    )
    nodes = [
        ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            node.attributes.values(),
            outputs=[product],
            name=f"{bias.name}.product",
            metadata_props=dict(node.metadata_props),
        ),
        ir.Node(
            "",
            "Add",
            [product, bias],
            outputs=[total],
            name=f"{bias.name}.add",
            metadata_props={NEURONS_PROPERTY: "bias"},
        ),
    ]
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, [old], [total])
