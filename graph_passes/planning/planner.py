"""Decide what each linear site becomes: factored at a rank, dense, or skipped, each with a reason.

Weights, not sites, are what is decided on: sites that share a weight share its factors. The steps
are functions of modules of their own: which sites are selected
(:mod:`~graph_passes.planning.selection`), how each weight is factored or why it stays dense
(:mod:`~graph_passes.planning.choice`), at which rank (:mod:`~graph_passes.planning.ranks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from compress_onnx.graph_passes.allocation import get_allocator
from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, make_method
from compress_onnx.graph_passes.planning.choice import (
    Choice,
    Choices,
    bias_parameters,
    choose,
    open_groups,
)
from compress_onnx.graph_passes.planning.damage import DamageCurve
from compress_onnx.graph_passes.planning.fitting import parameters_of
from compress_onnx.graph_passes.planning.plan import (
    CompressionPlan,
    PlanCost,
    SitePlan,
    check_opset,
)
from compress_onnx.graph_passes.planning.prices import PriceCurve
from compress_onnx.graph_passes.planning.ranks import (
    Prices,
    allocate,
    candidate_of,
    damage_curves,
    prices_of,
    without_damage,
    without_gain,
    without_price,
)
from compress_onnx.graph_passes.planning.request import QUANTITIES, Budget, CompressionSpec
from compress_onnx.graph_passes.planning.selection import check_patterns, why_unselected
from compress_onnx.graph_passes.planning.strategy import AUTO, concrete
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite

_UNITS: Mapping[Budget, Literal["bytes", "FLOPs", "ms"]] = {
    "bytes": "bytes",
    "flops": "FLOPs",
    "latency": "ms",
}
_ROUNDING = 1e-9


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
    stats = stats or {}
    request = _closed(request, measured=bool(stats), weighed=damage is not None)
    _check(request, table, measured=bool(stats))
    groups = group_by_weight(table.sites)
    unselected = {site.name: why_unselected(site, request.select) for site in table.sites}
    choices: Choices = {
        key: choose(sites, request, stats, unselected) for key, sites in groups.items()
    }
    curves = damage_curves(groups, choices, request, damage)
    choices = without_damage(groups, choices, request, curves)
    prices = prices_of(groups, choices, request, price)
    choices = without_price(groups, choices, request, prices)
    candidates = [
        candidate_of(sites, curves.get(key), prices.get(key))
        for key, sites in open_groups(groups, choices).items()
    ]
    ranks = allocate(candidates, request, choices)
    choices = without_gain(candidates, request, choices, ranks)
    biases = bias_parameters(open_groups(groups, choices), choices)
    plan = CompressionPlan(
        allocation="fixed rank" if request.rank is not None else request.allocation,
        budget=_why(request),
        sequential=bool(request.sequential),
        objective=request.objective or "positions",
        sites=tuple(
            _site_plan(
                site,
                request,
                choices[site.weight.key],
                unselected=unselected[site.name],
                rank=ranks.get(site.weight.key),
                bias_parameters=biases.get(site.name, 0),
            )
            for site in table.sites
        ),
        skipped=table.skipped,
    )
    return _with_cost(plan, request, prices) if prices else plan


def _closed(request: CompressionSpec, *, measured: bool, weighed: bool) -> CompressionSpec:
    """The request with nothing left open, where inputs were ``measured`` and damage ``weighed``."""
    if request.allocation == AUTO and not weighed:
        request = request.model_copy(update={"allocation": "uniform"})
    return concrete(request, "activations" if measured else "none")


def _check(request: CompressionSpec, table: SiteTable, *, measured: bool) -> None:
    """Refuse what makes no sense for this model, whatever its weights are."""
    check_opset(request.store, table.opset)
    method = make_method(request.method.name, request.method.options)
    if method.needs_activations and not measured and table.sites:
        raise RequestError(
            f"method {request.method.name} looks at activations: give calibration data, or use svd"
        )
    get_allocator(request.allocation)
    check_patterns(request.select, table.sites)


def _site_plan(
    site: LinearSite,
    request: CompressionSpec,
    choice: Choice,
    *,
    unselected: str | None,
    rank: int | None,
    bias_parameters: int,
) -> SitePlan:
    """What becomes of one site, from what was decided on its weight."""
    reason = unselected or choice.dense
    rank = None if reason else rank
    before, after = parameters_of(site, rank)
    return SitePlan(
        site=site.name,
        node=site.node.name or "",
        weight=site.weight.key,
        group=site.group,
        in_features=site.in_features,
        out_features=site.out_features,
        matrices=site.weight.matrices,
        itemsize=site.weight.itemsize,
        decision="skip" if unselected else "dense" if reason else "factor",
        reason=reason or _reason(site, request, choice),
        method=None if rank is None else choice.method,
        rank=rank,
        store="same" if rank is None else request.store,
        parameters_before=before,
        parameters_after=after,
        bias_parameters=bias_parameters,
        siblings=dict(site.siblings),
    )


def _why(request: CompressionSpec, allocation: str | None = None) -> str:
    if request.rank is not None:
        return f"rank {request.rank}"
    rule = allocation or request.allocation
    return f"{request.share:.0%} of {QUANTITIES[request.budget]}, {rule}"


def _reason(site: LinearSite, request: CompressionSpec, choice: Choice) -> str:
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


def _with_cost(plan: CompressionPlan, request: CompressionSpec, prices: Prices) -> CompressionPlan:
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
