"""Which feed-forward networks lose neurons, and how many: their menus beside those of weights.

A network is a candidate like a weight, with neurons in place of ranks: its price is that of all
its weights, its damage what the elimination of neurons costs the outputs
(:mod:`graph_passes.factorization.neurons`), in the unit of the allocation. One allocation shares
the budget out over both.

A network takes part as a whole: where a layer has to stay dense, or the down layer lacks the
evidence that damage goes by, its layers are planned as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compress_onnx.graph_passes.allocation import Damage, NeuronCandidate
from compress_onnx.graph_passes.allocation.price import LinearPrice, Price
from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.factorization.neurons import NeuronOrder
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.planning.request import Budget
from compress_onnx.graph_passes.sites.ffn import FFN, find_ffns
from compress_onnx.graph_passes.sites.linear_site import LinearSite

NeuronCurves = Callable[[Sequence[FFN]], list[Float64 | None]]
"""What each network costs the model with so many neurons left; None where that is not known."""
NeuronPrice = Callable[[FFN], Price | None]
"""What its weights take of a budget with so many neurons left."""


@dataclass(frozen=True)
class NeuronMenus:
    """The networks that may lose neurons.

    Attributes:
        ffns: by the name of the down layer.
        reasons: why other layers end none, by site name.
    """

    ffns: Mapping[str, FFN] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def members(self) -> Mapping[str, FFN]:
        """The network of each layer, by site name."""
        return {site.name: ffn for ffn in self.ffns.values() for site in ffn.sites}

    @property
    def weights(self) -> set[str]:
        """The keys of all their weights."""
        return {site.weight.key for ffn in self.ffns.values() for site in ffn.sites}


@dataclass(frozen=True)
class NeuronEvidence:
    """What is known about networks.

    Attributes:
        known: whether there is the evidence about a down layer that damage goes by.
        curves: what each network costs the model; None where allocations need not know.
        price: what it takes of a budget of FLOPs or latency.
    """

    known: Callable[[LinearSite], bool]
    curves: NeuronCurves | None = None
    price: NeuronPrice | None = None


def neuron_menus(
    sites: Sequence[LinearSite],
    dense: Mapping[str, str | None],
    known: Callable[[LinearSite], bool],
) -> NeuronMenus:
    """Find the networks between ``sites`` that can take part.

    Args:
        sites: of the model.
        dense: by site name, why it stays as it is; None where it need not.
        known: whether there is the evidence about a down layer that damage goes by.
    """
    table = find_ffns(sites)
    taking: dict[str, FFN] = {}
    reasons = dict(table.reasons)
    for ffn in table.ffns:
        reason = next(filter(None, (dense[site.name] for site in ffn.sites)), None)
        if reason is None and not known(ffn.down):
            reason = "too little is known about its input"
        if reason is None:
            taking[ffn.name] = ffn
        else:
            reasons[ffn.name] = reason
    return NeuronMenus(taking, reasons)


def candidates_of(
    menus: NeuronMenus, evidence: NeuronEvidence, budget: Budget
) -> list[NeuronCandidate]:
    """The networks as allocators see them; the key is the weight of the down layer."""
    price = {"params": None, "bytes": byte_price}.get(budget, evidence.price)
    ffns = [*menus.ffns.values()]
    damages = evidence.curves(ffns) if evidence.curves else [None] * len(ffns)
    return [
        NeuronCandidate(
            ffn.down.weight.key,
            ffn.neurons,
            ffn.parameters_per_neuron,
            damage=damage,
            quoted=price(ffn) if price else None,
        )
        for ffn, damage in zip(ffns, damages, strict=True)
    ]


def neuron_curves(
    kind: Damage, decompositions: Decompositions, slopes: Mapping[str, float] | None = None
) -> NeuronCurves | None:
    """The curves ``[H + 1]`` of any networks; None where allocations of ``kind`` need none.

    In the units of :func:`graph_passes.planning.damage.damage_curve`.
    """
    if kind == "none":
        return None

    def curve(ffn: FFN, order: NeuronOrder) -> Float64 | None:
        if kind == "energy":
            return order.damage / (order.energy or 1.0)
        if kind == "gauss-newton":
            return order.damage
        slope = (slopes or {}).get(ffn.down.weight.key)
        return None if slope is None else slope * order.damage

    def curves(ffns: Sequence[FFN]) -> list[Float64 | None]:
        downs = [ffn.down for ffn in ffns]
        orders = decompositions.neurons(downs, with_gradients=kind == "gauss-newton")
        return [curve(ffn, order) for ffn, order in zip(ffns, orders, strict=True)]

    return curves


def knows_enough(kind: Damage, decompositions: Decompositions) -> Callable[[LinearSite], bool]:
    """Whether there is the evidence about a down layer that allocations of ``kind`` go by."""
    accepted = {"gradients"} if kind == "gauss-newton" else {"gradients", "activations"}
    return lambda down: evidence_in(decompositions.known([down])) in accepted


def byte_price(ffn: FFN) -> LinearPrice:
    """Bytes in the file; biases are left out, as they are nowhere near the weights."""
    per_neuron = sum(up.weight.itemsize * up.in_features for up in ffn.ups)
    per_neuron += ffn.down.weight.itemsize * ffn.down.out_features
    return LinearPrice(dense=per_neuron * ffn.neurons, per_rank=per_neuron)


def flop_price(ffn: FFN, rows: Mapping[str, int]) -> LinearPrice | None:
    """FLOPs of one inference; ``rows``: how many rows each layer multiplies, by site name."""
    if any(site.name not in rows for site in ffn.sites):
        return None
    per_neuron = 2 * sum(up.in_features * rows[up.name] for up in ffn.ups)
    per_neuron += 2 * ffn.down.out_features * rows[ffn.down.name]
    return LinearPrice(dense=per_neuron * ffn.neurons, per_rank=per_neuron)
