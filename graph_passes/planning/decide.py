"""Decide what each linear site becomes: factored at a rank, dense, or skipped, each with a reason.

Weights, not sites, are what is decided on: sites that share a weight share its factors. A weight
stays dense where factors would not be smaller, r·(K + N) ≥ K·N, or would not take less of the
budget, unless that is explicitly allowed.

Calibration cannot look everywhere: a site inside an If, Loop or Scan has no activation statistics;
a weight on the left has statistics, but neither gradients nor a measured sensitivity. Methods and
allocations that go by the missing evidence leave such a weight dense or, where the request lets
other methods stand in (:mod:`graph_passes.planning.strategy`), factor it by one of these at a
uniform rank. Either way the reason says which evidence is missing, and where; also how many
matrices of a stack no row of the calibration data reached, which have plain SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import numpy as np

from compress_onnx.graph_passes.allocation import Allocator, Candidate, Damage, get_allocator
from compress_onnx.graph_passes.allocation.price import Price
from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, Known, Method, make_method
from compress_onnx.graph_passes.factorization.base import Float64
from compress_onnx.graph_passes.factorization.stack import knows_enough
from compress_onnx.graph_passes.planning.evidence import (
    evidence_in,
    lack_of,
    statistics_of,
    suffices,
)
from compress_onnx.graph_passes.planning.plan import (
    CompressionPlan,
    MethodSpec,
    PlanCost,
    SitePlan,
    check_opset,
)
from compress_onnx.graph_passes.planning.prices import PriceCurve, byte_price
from compress_onnx.graph_passes.planning.request import (
    QUANTITIES,
    Budget,
    CompressionSpec,
    Selection,
)
from compress_onnx.graph_passes.planning.strategy import AUTO, best_method, concrete
from compress_onnx.graph_passes.sites.find import LinearSite, SiteTable

DamageCurve = Callable[[Sequence[LinearSite]], Float64 | None]
WeightGroups = Mapping[str, Sequence[LinearSite]]

_UNITS: Mapping[Budget, Literal["bytes", "FLOPs", "ms"]] = {
    "bytes": "bytes",
    "flops": "FLOPs",
    "latency": "ms",
}
_NEED = {**QUANTITIES, "latency": "milliseconds"}
_ROUNDING = 1e-9


def group_by_weight(sites: Sequence[LinearSite]) -> WeightGroups:
    """Sites by weight key, in graph order."""
    groups: dict[str, list[LinearSite]] = {}
    for site in sites:
        groups.setdefault(site.weight.key, []).append(site)
    return groups


def make_plan(
    table: SiteTable,
    request: CompressionSpec,
    stats: Mapping[str, ActivationStats] | None = None,
    damage: DamageCurve | None = None,
    price: PriceCurve | None = None,
) -> CompressionPlan:
    """Plan the compression of the model whose sites are ``table``.

    Args:
        table: all sites of the model.
        request: what the user asks for.
        stats: activation statistics by matrix name.
        damage: what a weight costs the model at each rank (None where that is not known), for the
            allocations that go by it; without, an open allocation is uniform.
        price: what a weight takes of a budget of FLOPs or latency.

    Raises:
        RequestError: unknown method, option or allocation, a pattern that matches nothing, a
            method that needs statistics where there are none, or a budget without its prices.
    """
    if damage is None and request.allocation == AUTO:
        request = request.model_copy(update={"allocation": "uniform"})
    stats = stats or {}
    request = concrete(request, "activations" if stats else "none")
    check_opset(request.store, table.opset)
    spec = request.method
    method = make_method(spec.name, spec.options)
    if method.needs_activations and not stats and table.sites:
        raise RequestError(
            f"method {spec.name} looks at activations: give calibration data, or use svd"
        )
    allocator = get_allocator(request.allocation)
    if allocator.damage == "none" or request.rank is not None:
        damage = None
    _check_patterns(request.select, table.sites)
    unselected = {site.name: _unselected(site, request.select) for site in table.sites}
    groups = group_by_weight(table.sites)
    choices = {key: _choose(sites, request, method, stats) for key, sites in groups.items()}
    dense = {
        key: _must_stay_dense(sites, unselected, choices[key]) for key, sites in groups.items()
    }
    open_groups = {key: sites for key, sites in groups.items() if dense[key] is None}
    curves = _curves(open_groups, choices, damage)
    for key in [key for key, curve in curves.items() if curve is None]:
        lacks = choices[key].lacks or lack_of(_EVIDENCE[allocator.damage], groups[key])
        choices[key] = replace(choices[key], lacks=lacks)
        if not request.stand_ins:
            dense[key] = f"{lacks}: use --allocation uniform"
            del open_groups[key]
    prices = _prices(request, open_groups, choices, price)
    for key, found in prices.items():
        if found is None:
            lacks = lack_of(f"known {QUANTITIES[request.budget]}", open_groups.pop(key))
            dense[key] = f"{lacks}: use --params"
    candidates = [
        _candidate(sites, curves.get(key), prices.get(key)) for key, sites in open_groups.items()
    ]
    ranks = _ranks(candidates, request, allocator, choices)
    for candidate in candidates:
        dense[candidate.key] = _better_dense(candidate, ranks[candidate.key], request)
    factored = {key: groups[key] for key, reason in dense.items() if reason is None}
    bias = _bias_parameters(factored, choices)

    def plan_site(site: LinearSite) -> SitePlan:
        key = site.weight.key
        reason = unselected[site.name] or dense[key]
        rank = None if reason else ranks[key]
        matrices = site.weight.matrices
        parameters = matrices * site.in_features * site.out_features
        cost = matrices * (site.in_features + site.out_features)
        return SitePlan(
            site=site.name,
            node=site.node.name or "",
            weight=key,
            group=site.group,
            in_features=site.in_features,
            out_features=site.out_features,
            matrices=matrices,
            decision="skip" if unselected[site.name] else "dense" if reason else "factor",
            reason=reason or _reason(site, request, choices[key]),
            method=None if rank is None else choices[key].method,
            rank=rank,
            store="same" if rank is None else request.store,
            parameters_before=parameters,
            parameters_after=parameters if rank is None else rank * cost,
            bias_parameters=bias.get(site.name, 0),
            siblings=dict(site.siblings),
        )

    plan = CompressionPlan(
        allocation="fixed rank" if request.rank is not None else request.allocation,
        budget=_why(request),
        sequential=bool(request.sequential),
        objective=request.objective or "positions",
        sites=tuple(plan_site(site) for site in table.sites),
        skipped=table.skipped,
    )
    return _with_cost(plan, request, prices) if prices else plan


def _prices(
    request: CompressionSpec,
    groups: WeightGroups,
    choices: Mapping[str, _Choice],
    price: PriceCurve | None,
) -> dict[str, Price | None]:
    """By weight key, what each takes of the budget; nothing where that is parameters."""
    if request.rank is not None or request.budget == "params":
        return {}
    if request.budget == "bytes":
        price = partial(
            byte_price, bias_parameters=_bias_parameters(groups, choices), store=request.store
        )
    if price is None:
        raise RequestError(
            f"nobody knows what the weights take of a budget of {QUANTITIES[request.budget]}"
        )
    return {key: price(members) for key, members in groups.items()}


def _candidate(
    sites: Sequence[LinearSite], damage: Float64 | None, price: Price | None
) -> Candidate:
    """The weight that ``sites`` share, as allocators see it."""
    weight, (rows, columns) = sites[0].weight, (sites[0].in_features, sites[0].out_features)
    return Candidate(weight.key, rows, columns, weight.matrices, damage, price)


def _curves(
    groups: WeightGroups, choices: Mapping[str, _Choice], damage: DamageCurve | None
) -> dict[str, Float64 | None]:
    """What each weight costs the model, where ranks go by that; None where it is not known."""
    if damage is None:
        return {}
    return {key: None if choices[key].lacks else damage(sites) for key, sites in groups.items()}


def _ranks(
    candidates: Sequence[Candidate],
    request: CompressionSpec,
    allocator: Allocator,
    choices: Mapping[str, _Choice],
) -> Mapping[str, int | None]:
    """The rank of each; those that lack evidence are apart from the others, all alike."""
    if request.rank is not None:
        return {c.key: min(request.rank, c.max_rank) for c in candidates}
    apart = [c for c in candidates if choices[c.key].lacks]
    others = [c for c in candidates if not choices[c.key].lacks]
    return {
        **allocator(others, request.share, request.rank_multiple),
        **get_allocator("uniform")(apart, request.share, request.rank_multiple),
    }


def _better_dense(candidate: Candidate, rank: int | None, request: CompressionSpec) -> str | None:
    """Why the weight stays dense at the ``rank`` that was allocated; None where it does not."""
    if rank is None and candidate.pays(1):
        return f"its {_NEED[request.budget]} are worth more to it than to the others"
    if rank is not None and (request.allow_larger or candidate.pays(rank)):
        return None
    smaller = (rank or 1) * candidate.cost < candidate.dense
    gain = "faster" if smaller and request.budget == "latency" else "smaller"
    return f"rank {rank or 1} would not be {gain} than the dense weight"


def _with_cost(
    plan: CompressionPlan, request: CompressionSpec, prices: Mapping[str, Price | None]
) -> CompressionPlan:
    """The plan with what it takes of the budget, and a note where that is more than was asked."""
    ranks = {site.weight: site.rank for site in plan.selected}
    known = [(price, ranks[key]) for key, price in prices.items() if price is not None]
    before = sum(price.dense for price, _ in known)
    after = sum(price.dense if rank is None else price.at(rank) for price, rank in known)
    cost = PlanCost(unit=_UNITS[request.budget], before=before, after=after)
    notes = plan.notes
    if after > request.share * before * (1 + _ROUNDING):
        notes += (
            f"the budget is not kept: {after / before:.1%} of {QUANTITIES[request.budget]} instead "
            f"of {request.share:.1%}, as the sites' least ranks take too much",
        )
    return plan.model_copy(update={"cost": cost, "notes": notes})


def require_gain(plan: CompressionPlan) -> None:
    """Refuse a plan that factors nothing.

    Raises:
        NothingToCompressError: with the reasons, most frequent first.
    """
    if plan.factored:
        return
    reasons = [site.reason for site in plan.sites] + [node.reason for node in plan.skipped]
    if not reasons:
        raise NothingToCompressError("the model has no MatMul or Gemm: nothing to compress")
    common = max(set(reasons), key=reasons.count)
    raise NothingToCompressError(
        f"nothing can be compressed: none of {len(reasons)} matrix products is factored, "
        f"{reasons.count(common)} of them because: {common}"
    )


def _why(request: CompressionSpec, allocation: str | None = None) -> str:
    if request.rank is not None:
        return f"rank {request.rank}"
    rule = allocation or request.allocation
    return f"{request.share:.0%} of {QUANTITIES[request.budget]}, {rule}"


def _reason(site: LinearSite, request: CompressionSpec, choice: _Choice) -> str:
    reason = _why(request, "uniform" if choice.lacks else None)
    if site.siblings:
        reason += f", one down for {len(site.siblings)} siblings"
    if choice.lacks and choice.method:
        reason += f"; {choice.method.name}, as there are {choice.lacks}"
    if choice.unreached:
        reason += (
            f"; svd for {choice.unreached} of {site.weight.matrices} matrices: no row for them"
        )
    return reason


def _names(site: LinearSite) -> tuple[str, ...]:
    """The names that patterns see: those of the siblings that were joined into one site."""
    return tuple(site.siblings) or (site.name,)


def _check_patterns(select: Selection, sites: Sequence[LinearSite]) -> None:
    for pattern in (*select.include, *select.exclude):
        names = [name for site in sites for name in _names(site)]
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise RequestError(
                f"the pattern {pattern!r} matches no linear site; the first is "
                f"{sites[0].name!r} (compress-onnx analyze lists them all)"
            )


def _unselected(site: LinearSite, select: Selection) -> str | None:
    if select.group not in {"all", site.group}:
        return f"not in the group {select.group}"
    for name in _names(site):
        if not any(fnmatchcase(name, pattern) for pattern in select.include):
            return "not included by any pattern"
        for pattern in select.exclude:
            if fnmatchcase(name, pattern):
                return f"excluded by {pattern!r}"
    return None


@dataclass(frozen=True)
class _Choice:
    """How a weight is to be factored.

    Attributes:
        method: None where there is too little evidence, and no other method may stand in.
        lacks: which evidence there is none of; "" where there is all that the request goes by.
        unreached: how many matrices of a stack the method knows too little about.
    """

    method: MethodSpec | None
    lacks: str = ""
    unreached: int = 0


def _choose(
    sites: Sequence[LinearSite],
    request: CompressionSpec,
    method: Method,
    stats: Mapping[str, ActivationStats],
) -> _Choice:
    known = statistics_of(sites, stats)
    evidence = evidence_in(known)
    if suffices(evidence, method):
        return _Choice(request.method, unreached=_unreached(method, known))
    lacks = lack_of("gradients" if method.needs_gradients else "activation statistics", sites)
    if not request.stand_ins:
        return _Choice(None, lacks)
    spec = best_method(evidence)
    return _Choice(spec, lacks, _unreached(make_method(spec.name, spec.options), known))


def _unreached(method: Method, known: Known) -> int:
    return sum(not knows_enough(method, stats) for stats in known)


def _must_stay_dense(
    sites: Sequence[LinearSite], unselected: Mapping[str, str | None], choice: _Choice
) -> str | None:
    for site in sites:
        if unselected[site.name]:
            return f"shares its weight with {site.name}, which is not selected"
    if choice.method is None:
        return f"{choice.lacks}: use --method svd"
    if not np.isfinite(sites[0].weight.array().astype(np.float32, copy=False)).all():
        return "the weight has NaN or infinite values"
    return None


_EVIDENCE: Mapping[Damage, str] = {
    "sensitivity": "measured sensitivity",
    "gauss-newton": "gradients",
}


def _bias_parameters(factored: WeightGroups, choices: Mapping[str, _Choice]) -> dict[str, int]:
    """What the bias correction of each factored site adds to the file: new bias less old bias.

    An old bias goes only when all its readers get a new one; the last of them takes it away.
    """
    sites = [s for key in factored for s in factored[key] if _corrects_bias(choices[key], s)]
    added = {site.name: site.corrected_bias for site in sites}
    last = {site.bias.value: site for site in sites if site.bias is not None}
    corrected = {site.bias.node for site in sites if site.bias is not None}
    for value, site in last.items():
        if value.const_value is None or value.is_graph_output():
            continue
        if all(node in corrected for node, _ in value.uses()):
            added[site.name] -= value.const_value.size
    return added


def _corrects_bias(choice: _Choice, site: LinearSite) -> bool:
    spec = choice.method
    assert spec is not None
    return make_method(spec.name, spec.options).corrects_bias and site.corrected_bias > 0
