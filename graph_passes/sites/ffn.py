"""Find feed-forward networks ``y = f(x·W₁ + b₁, …)·W₂ + b₂`` with an elementwise f.

Neuron j of the hidden value depends on column j of each *up* layer alone, and reaches the output
through row j of the *down* layer. So a neuron can be taken out of all of them, whatever f is and in
whatever nodes it is spelled; in a gated network ``f(x·W_g)·(x·W_u)`` gate and up share neurons.

Rules:

1. The nodes between up and down are elementwise (:mod:`graph_passes.sites.elementwise`) or change
   other axes (:mod:`graph_passes.sites.reshaping`): the neurons are on the last axis throughout.
2. What else they read has one number for each neuron, which goes with it, or is the same for all.
3. Nobody else reads a hidden value: whoever does would miss the neurons. Its shape may be read.
4. No weight is shared with another site, or is a stack of matrices. The branches of an If may share
   theirs, where whoever asks treats their networks alike.
5. All nodes are in one graph, and networks share no layer: where the down layer of one is the up
   layer of the next, the first is one, and the second is not.

A down layer that no such network ends in has a reason (:attr:`FFNTable.reasons`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from compress_onnx.graph_passes.sites.elementwise import is_elementwise
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.reshaping import RESHAPING, is_told, why_lost, why_unclear
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS


@dataclass(frozen=True)
class FFN:
    """A feed-forward network of H neurons.

    Attributes:
        ups: the layers ``[K, H]`` that make the hidden value; two where it is gated.
        down: the layer ``[H, N]`` that reads it.
        between: the nodes between them, in no particular order.
        constants: the operands ``[.., H]`` with a number for each neuron, by node and index.
        told: the Reshapes in between whose targets end in H.
    """

    ups: tuple[LinearSite, ...]
    down: LinearSite
    between: tuple[ir.Node, ...] = ()
    constants: tuple[tuple[ir.Node, int], ...] = ()
    told: tuple[ir.Node, ...] = ()

    @property
    def name(self) -> str:
        """That of the down layer."""
        return self.down.name

    @property
    def sites(self) -> tuple[LinearSite, ...]:
        """All layers."""
        return (*self.ups, self.down)

    @property
    def neurons(self) -> int:
        """H."""
        return self.down.in_features

    @property
    def parameters_per_neuron(self) -> int:
        """What each neuron has in the weights."""
        return sum(up.in_features for up in self.ups) + self.down.out_features

    @property
    def hidden(self) -> Iterator[ir.Value]:
        """All values whose last axis are the neurons."""
        for node in (*(up.node for up in self.ups), *self.between):
            yield from node.outputs


@dataclass(frozen=True)
class FFNTable:
    """All networks of a model, and why the other layers end none, by site name."""

    ffns: tuple[FFN, ...]
    reasons: Mapping[str, str]


def find_ffns(sites: Sequence[LinearSite], *, branches_share: bool = False) -> FFNTable:
    """Find all feed-forward networks between ``sites``; reads no weights and changes nothing.

    Args:
        sites: of one model.
        branches_share: whether networks of different graphs, the branches of an If, may have the
            same weights (rule 4).
    """
    by_node = {site.node: site for site in sites}
    shared: set[str] = set()
    for key, members in group_by_weight(sites).items():
        graphs = {site.node.graph for site in members}
        if len(members) > (len(graphs) if branches_share else 1):
            shared.add(key)
    found: list[FFN] = []
    reasons: dict[str, str] = {}
    taken: set[str] = set()
    for site in sites:
        ffn = _ending_in(site, by_node, shared)
        if isinstance(ffn, str):
            reasons[site.name] = ffn
        elif taken & {layer.name for layer in ffn.sites}:
            reasons[site.name] = "it shares a layer with another feed-forward network"
        else:
            taken |= {layer.name for layer in ffn.sites}
            found.append(ffn)
    return FFNTable(tuple(found), reasons)


def _ending_in(
    down: LinearSite, by_node: Mapping[ir.Node, LinearSite], shared: set[str]
) -> FFN | str:
    """The network whose down layer is ``down``, or why there is none."""
    if down.transpose_input or down.weight.stacked or down.weight.key in shared:
        return "its weight is shared, a stack, or on the left"
    walk = _Walk(down, by_node, shared)
    reason = walk.through(down.input)
    if reason is None and not walk.ups:
        reason = "no layer makes its input"
    reason = reason or walk.other_reader()
    if reason is not None:
        return reason
    told = tuple(node for node in walk.between if is_told(node))
    return FFN(tuple(walk.ups), down, tuple(walk.between), tuple(walk.constants), told)


@dataclass
class _Walk:
    """Goes back from the input of a down layer to the layers that it is made of."""

    down: LinearSite
    by_node: Mapping[ir.Node, LinearSite]
    shared: set[str]
    ups: list[LinearSite] = field(default_factory=list)
    between: list[ir.Node] = field(default_factory=list)
    constants: list[tuple[ir.Node, int]] = field(default_factory=list)

    def through(self, start: ir.Value) -> str | None:
        """Collect all that ``start`` is computed from; returns what is in the way."""
        values, seen = [start], {start}
        while values:
            node = values.pop().producer()
            if node is None or node.graph is not self.down.node.graph:
                return "its input is computed outside"
            if node in self.by_node:
                reason = self._end_at(self.by_node[node])
                if reason is not None:
                    return reason
                continue
            reshapes = node.domain in STANDARD_DOMAINS and node.op_type in RESHAPING
            if reshapes and (lost := why_lost(node, self.down.in_features)) is not None:
                return lost
            if not reshapes and not is_elementwise(node):
                return f"its input comes from {node.op_type}, which is not elementwise"
            self.between.append(node)
            for index, value in enumerate(node.inputs[:1] if reshapes else node.inputs):
                if value is None or value in seen or self._takes_apart(node, index, value):
                    continue
                seen.add(value)
                values.append(value)
        return None

    def _end_at(self, up: LinearSite) -> str | None:
        if up.on_left or up.weight.stacked or up.weight.key in self.shared:
            return f"the weight of {up.name} is shared, a stack, or on the left"
        if up.out_features != self.down.in_features:
            return f"{up.name} has {up.out_features} outputs for {self.down.in_features} neurons"
        if up.node is self.down.node:
            return "it reads its own output"
        if len(up.node.inputs) > 2 and up.node.inputs[2] is not None:
            addend = up.node.inputs[2]
            if not self._takes_apart(up.node, 2, addend):
                return f"{up.name} adds a computed value"
        self.ups.append(up)
        return None

    def _takes_apart(self, node: ir.Node, index: int, value: ir.Value) -> bool:
        """Rule 2: whether ``value`` is an operand that needs no looking into."""
        if value.is_initializer() and value.const_value is not None and not value.is_graph_input():
            shape = value.const_value.shape.numpy()
            if shape and shape[-1] == self.down.in_features:
                self.constants.append((node, index))
                return True
            return not shape or shape[-1] == 1
        if (constant := ir.convenience.get_const_tensor(value)) is not None:
            return constant.size == 1
        return value.shape is not None and (
            len(value.shape) == 0 or (value.shape[-1] == 1 and self.down.in_features > 1)
        )

    def other_reader(self) -> str | None:
        """Rule 3."""
        inside = {*self.between, self.down.node}
        shapes: list[ir.Node] = []
        for node in (*(up.node for up in self.ups), *self.between):
            for value in node.outputs:
                if value.is_graph_output():
                    return f"the hidden value {value.name!r} is an output of the graph"
                for reader, index in value.uses():
                    if reader.op_type == "Shape" and reader.domain in STANDARD_DOMAINS:
                        shapes.append(reader)
                    elif reader not in inside or (
                        reader is self.down.node and index == self.down.weight_index
                    ):
                        return f"{reader.op_type} {reader.name!r} reads the hidden value, too"
        return why_unclear(self.between, shapes)
