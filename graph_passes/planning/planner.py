"""Decide what each linear site becomes: factored at a rank, dense, or skipped, each with a reason.

Weights, not sites, are what is decided on: sites that share a weight share its factors. The steps
are functions of modules of their own: which sites are selected
(:mod:`~graph_passes.planning.selection`), how each weight is factored or why it stays dense
(:mod:`~graph_passes.planning.choice`), at which rank (:mod:`~graph_passes.planning.ranks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import onnx_ir as ir

from compress_onnx.graph_passes.allocation import Candidate, get_allocator, multiplier
from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, make_method
from compress_onnx.graph_passes.planning.choice import (
    Choice,
    Choices,
    bias_parameters,
    choose,
    open_groups,
)
from compress_onnx.graph_passes.planning.damage import DamageCurves
from compress_onnx.graph_passes.planning.ffns import (
    NeuronEvidence,
    NeuronMenus,
    candidates_of,
    neuron_menus,
)
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
from compress_onnx.graph_passes.sites.ffn import FFN
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.grouping import WeightGroups, group_by_weight
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
    damage: DamageCurves | None = None,
    price: PriceCurve | None = None,
    *,
    networks: NeuronEvidence | None = None,
) -> CompressionPlan:
    """Plan the compression of the model whose sites are ``table``.

    Args:
        table: all sites of the model.
        request: what the user asks for.
        stats: activation statistics by matrix name.
        damage: what a weight costs the model at each rank (None where that is not known), for the
            allocations that go by it; without, an open allocation is uniform.
        price: what a weight takes of a budget of FLOPs or latency.
        networks: what feed-forward networks cost and take with neurons left out; for requests that
            ask for it.

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
    dense = {s.name: unselected[s.name] or choices[s.weight.key].dense for s in table.sites}
    menus = _menus(table, request, dense, networks)
    choices = _beside_networks(groups, choices, request, menus)
    curves = damage_curves(groups, choices, request, damage)
    choices = without_damage(groups, choices, request, curves)
    prices = prices_of(groups, choices, request, price)
    choices = without_price(groups, choices, request, prices)
    candidates = [
        candidate_of(sites, curves.get(key), prices.get(key))
        for key, sites in open_groups(groups, choices).items()
    ]
    thinned = candidates_of(menus, networks, request.budget) if networks else []
    taking = [*candidates, *thinned]
    ranks = allocate(taking, request, choices)
    damages = _damages(taking, ranks)
    choices = without_gain(candidates, request, choices, ranks)
    biases = bias_parameters(open_groups(groups, choices), choices)
    plan = CompressionPlan(
        allocation="fixed rank" if request.rank is not None else request.allocation,
        budget=_why(request),
        multiplier=multiplier(taking, ranks, request.rank_multiple),
        sequential=bool(request.sequential),
        objective=request.objective or "positions",
        shrinkage=request.shrinkage,
        sites=tuple(
            _thinned_plan(site, request, menus.members[site.name], ranks, damages)
            if site.name in menus.members
            else _site_plan(
                site,
                request,
                choices[site.weight.key],
                unselected=unselected[site.name],
                rank=ranks.get(site.weight.key),
                damage=damages.get(site.weight.key),
                bias_parameters=biases.get(site.name, 0),
            )
            for site in table.sites
        ),
        skipped=table.skipped,
    )
    prices = {**prices, **{c.key: c.quoted for c in thinned if c.quoted is not None}}
    return _with_cost(plan, request, prices) if prices else plan


def whole_plan(table: SiteTable) -> CompressionPlan:
    """The plan that leaves all sites of ``table`` as they are."""
    reason = "all of it stays"
    sites = []
    for site in table.sites:
        parameters, _ = parameters_of(site, None)
        sites.append(
            SitePlan(
                **_identity(site),
                decision="dense",
                reason=reason,
                parameters_before=parameters,
                parameters_after=parameters,
            )
        )
    return CompressionPlan(
        allocation="none", budget=reason, sites=tuple(sites), skipped=table.skipped
    )


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


def _menus(
    table: SiteTable,
    request: CompressionSpec,
    dense: Mapping[str, str | None],
    networks: NeuronEvidence | None,
) -> NeuronMenus:
    """The networks that may lose neurons; none where nobody asked.

    Raises:
        RequestError: somebody asked, and neurons cannot be chosen.
    """
    if request.ffns == "factor":
        return NeuronMenus()
    if networks is None:
        raise RequestError("neurons are chosen by what they compute: give calibration data")
    if request.rank is not None:
        raise RequestError("neurons go by a budget, not by a rank: use --params")
    return neuron_menus(table.sites, dense, networks.known)


def _beside_networks(
    groups: WeightGroups, choices: Choices, request: CompressionSpec, menus: NeuronMenus
) -> Choices:
    """The choices, where weights of networks are planned elsewhere, and others as asked for."""
    changed = dict(choices)
    for key, sites in groups.items():
        if key in menus.weights:
            changed[key] = replace(choices[key], dense="part of a feed-forward network")
        elif request.ffns == "alone":
            reason = menus.reasons.get(sites[0].name, "no feed-forward network ends in it")
            changed[key] = replace(choices[key], dense=choices[key].dense or reason)
    return changed


def _damages(candidates: Sequence[Candidate], ranks: Mapping[str, int | None]) -> dict[str, float]:
    """What each weight costs the model at its rank, by key; none of those that stay dense."""
    found: dict[str, float] = {}
    for candidate in candidates:
        rank = ranks[candidate.key]
        if candidate.damage is not None and rank is not None:
            found[candidate.key] = float(candidate.damage[rank])
    return found


def _thinned_plan(
    site: LinearSite,
    request: CompressionSpec,
    ffn: FFN,
    ranks: Mapping[str, int | None],
    damages: Mapping[str, float],
) -> SitePlan:
    """What becomes of one layer of a network that may lose neurons."""
    neurons = ranks[ffn.down.weight.key]
    if neurons == ffn.neurons:
        neurons = None
    before, _ = parameters_of(site, None)
    constants = sum(_size(node, index) for node, index in ffn.constants)
    biases = 0 if neurons is None else -constants * (ffn.neurons - neurons) // ffn.neurons
    if ffn.down.bias is None:
        biases += ffn.down.out_features
    return SitePlan(
        **_identity(site),
        decision="dense" if neurons is None else "neurons",
        reason="its neurons are worth more to it than to the others"
        if neurons is None
        else f"{_why(request)}, {neurons} of {ffn.neurons} neurons",
        ffn="" if neurons is None else ffn.name,
        neurons=neurons,
        method=None if neurons is None else request.method,
        parameters_before=before,
        parameters_after=before if neurons is None else before * neurons // ffn.neurons,
        bias_parameters=biases if neurons is not None and site is ffn.down else 0,
        damage=damages.get(site.weight.key) if neurons and site is ffn.down else None,
    )


def _size(node: ir.Node, index: int) -> int:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return int(value.const_value.size)


def _site_plan(
    site: LinearSite,
    request: CompressionSpec,
    choice: Choice,
    *,
    unselected: str | None,
    rank: int | None,
    damage: float | None,
    bias_parameters: int,
) -> SitePlan:
    """What becomes of one site, from what was decided on its weight."""
    reason = unselected or choice.dense
    rank = None if reason else rank
    before, after = parameters_of(site, rank)
    return SitePlan(
        **_identity(site),
        decision="skip" if unselected else "dense" if reason else "factor",
        reason=reason or _reason(site, request, choice),
        method=None if rank is None else choice.method,
        rank=rank,
        damage=None if rank is None else damage,
        store="same" if rank is None else request.store,
        parameters_before=before,
        parameters_after=after,
        bias_parameters=bias_parameters,
        siblings=dict(site.siblings),
    )


def _identity(site: LinearSite) -> dict[str, Any]:
    """Which site a plan is about, and of which size."""
    return {
        "site": site.name,
        "node": site.node.name or "",
        "weight": site.weight.key,
        "group": site.group,
        "in_features": site.in_features,
        "out_features": site.out_features,
        "matrices": site.weight.matrices,
        "itemsize": site.weight.itemsize,
    }


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
    ranks = {site.weight: site.kept for site in plan.selected}
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
    if plan.changed:
        return
    reasons = [site.reason for site in plan.sites] + [node.reason for node in plan.skipped]
    if not reasons:
        raise NothingToCompressError("the model has no MatMul or Gemm: nothing to compress")
    common = max(set(reasons), key=reasons.count)
    raise NothingToCompressError(
        f"nothing can be compressed: none of {len(reasons)} matrix products is factored, "
        f"{reasons.count(common)} of them because: {common}"
    )
