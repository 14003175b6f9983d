"""At which rank each weight is factored: what ranks go by, what they take, and who is better whole.

A weight stays dense where factors would not be smaller, r·(K + N) ≥ K·N, or would not take less of
the budget, unless that is explicitly allowed. One that lacks what the others are weighed by (its
damage at each rank) is factored at a uniform rank, where the request lets methods stand in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from compress_onnx.graph_passes.allocation import Candidate, Damage, get_allocator
from compress_onnx.graph_passes.allocation.price import Price
from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.choice import Choices, bias_parameters, open_groups
from compress_onnx.graph_passes.planning.damage import DamageCurves
from compress_onnx.graph_passes.planning.evidence import lack_of
from compress_onnx.graph_passes.planning.prices import PriceCurve, byte_price
from compress_onnx.graph_passes.planning.request import QUANTITIES, CompressionSpec
from compress_onnx.graph_passes.sites.grouping import WeightGroups
from compress_onnx.graph_passes.sites.linear_site import LinearSite

Curves = Mapping[str, Float64 | None]
Prices = Mapping[str, Price | None]
Ranks = Mapping[str, int | None]

_EVIDENCE: Mapping[Damage, str] = {
    "sensitivity": "measured sensitivity",
    "gauss-newton": "gradients",
}
_NEED = {**QUANTITIES, "latency": "milliseconds"}


def damage_curves(
    groups: WeightGroups, choices: Choices, request: CompressionSpec, damage: DamageCurves | None
) -> Curves:
    """What each open weight costs the model at each rank; None where that is not known.

    Empty where ranks do not go by damage.
    """
    by_damage = request.rank is None and get_allocator(request.allocation).damage != "none"
    if damage is None or not by_damage:
        return {}
    members = open_groups(groups, choices)
    known = {key: sites for key, sites in members.items() if not choices[key].lacks}
    curves = dict(zip(known, damage(list(known.values())), strict=True))
    return {key: curves.get(key) for key in members}


def without_damage(
    groups: WeightGroups, choices: Choices, request: CompressionSpec, curves: Curves
) -> Choices:
    """The choices, where weights of unknown damage say so, and stay dense if none may stand in."""
    evidence = _EVIDENCE.get(get_allocator(request.allocation).damage, "")
    changed = dict(choices)
    for key in [key for key, curve in curves.items() if curve is None]:
        lacks = choices[key].lacks or lack_of(evidence, groups[key])
        dense = None if request.stand_ins else f"{lacks}: use --allocation uniform"
        changed[key] = replace(choices[key], lacks=lacks, dense=dense)
    return changed


def prices_of(
    groups: WeightGroups, choices: Choices, request: CompressionSpec, price: PriceCurve | None
) -> Prices:
    """What each open weight takes of the budget; None where that is not known.

    Empty where the budget is parameters, which need no looking up.

    Raises:
        RequestError: a budget without its prices.
    """
    if request.rank is not None or request.budget == "params":
        return {}
    members = open_groups(groups, choices)
    if request.budget == "bytes":
        price = partial(
            byte_price, bias_parameters=bias_parameters(members, choices), store=request.store
        )
    if price is None:
        raise RequestError(
            f"nobody knows what the weights take of a budget of {QUANTITIES[request.budget]}"
        )
    return {key: price(sites) for key, sites in members.items()}


def without_price(
    groups: WeightGroups, choices: Choices, request: CompressionSpec, prices: Prices
) -> Choices:
    """The choices, where weights of unknown price stay dense."""
    changed = dict(choices)
    for key in [key for key, price in prices.items() if price is None]:
        lacks = lack_of(f"known {QUANTITIES[request.budget]}", groups[key])
        changed[key] = replace(choices[key], dense=f"{lacks}: use --params")
    return changed


def candidate_of(
    sites: Sequence[LinearSite], damage: Float64 | None = None, price: Price | None = None
) -> Candidate:
    """The weight that ``sites`` share, as allocators see it."""
    weight, (rows, columns) = sites[0].weight, (sites[0].in_features, sites[0].out_features)
    return Candidate(weight.key, rows, columns, weight.matrices, damage, price)


def allocate(candidates: Sequence[Candidate], request: CompressionSpec, choices: Choices) -> Ranks:
    """The rank of each; those that lack evidence are apart from the others, all alike."""
    if request.rank is not None:
        return {c.key: min(request.rank, c.max_rank) for c in candidates}
    apart = [c for c in candidates if choices[c.key].lacks]
    others = [c for c in candidates if not choices[c.key].lacks]
    allocator = get_allocator(request.allocation)
    return {
        **allocator(others, request.share, request.rank_multiple),
        **get_allocator("uniform")(apart, request.share, request.rank_multiple),
    }


def without_gain(
    candidates: Sequence[Candidate], request: CompressionSpec, choices: Choices, ranks: Ranks
) -> Choices:
    """The choices, where weights that gain nothing by their rank stay dense."""
    changed = dict(choices)
    for candidate in candidates:
        dense = _better_dense(candidate, ranks[candidate.key], request)
        changed[candidate.key] = replace(choices[candidate.key], dense=dense)
    return changed


def _better_dense(candidate: Candidate, rank: int | None, request: CompressionSpec) -> str | None:
    """Why the weight stays dense at the ``rank`` that was allocated; None where it does not."""
    if rank is None and candidate.pays(1):
        return f"its {_NEED[request.budget]} are worth more to it than to the others"
    if rank is not None and (request.allow_larger or candidate.pays(rank)):
        return None
    smaller = (rank or 1) * candidate.cost < candidate.dense
    gain = "faster" if smaller and request.budget == "latency" else "smaller"
    return f"rank {rank or 1} would not be {gain} than the dense weight"
