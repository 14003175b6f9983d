"""Carry a plan out numerically: factor one weight at a time and measure the error of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    Factorization,
    Known,
    make_method,
)
from compress_onnx.graph_passes.factorization.base import Decomposition, Float64, Method
from compress_onnx.graph_passes.factorization.error import (
    activation_error,
    least_errors,
    weight_error,
)
from compress_onnx.graph_passes.factorization.stack import decompose
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.planning.decide import group_by_weight
from compress_onnx.graph_passes.planning.evidence import evidence_in, statistics_of
from compress_onnx.graph_passes.planning.plan import (
    CompressionPlan,
    SiteError,
    SitePlan,
    check_opset,
)
from compress_onnx.graph_passes.sites.find import LinearSite, SiteTable


@dataclass(frozen=True)
class FactoredWeight:
    """One weight taken apart for all the sites that share it.

    Attributes:
        sites: that share it.
        plan: of the last of them.
        factorization: its factors as stored.
        error: of these.
        least: ``[q + 1]`` the least squared error at each rank in the metric of ``error.bound``.
    """

    sites: Sequence[LinearSite]
    plan: SitePlan
    factorization: Factorization
    error: SiteError
    least: Float64


def factor_weights(
    table: SiteTable,
    plan: CompressionPlan,
    stats: Mapping[str, ActivationStats],
    ready: Mapping[str, Factorization] | None = None,
) -> Iterator[FactoredWeight]:
    """Factor the weights that ``plan`` says, one at a time, so that only one is in memory.

    Args:
        table: the sites of the model.
        plan: ranks and methods.
        stats: activation statistics by matrix name, for the methods that need them.
        ready: factorizations by weight key that are there already.

    Raises:
        RequestError: the plan does not fit the model.
    """
    groups = group_by_weight(table.sites)
    check_fits(table, plan)
    planned = {site.weight: site for site in plan.factored}
    for key, site_plan in planned.items():
        yield _factor(groups[key], site_plan, stats, (ready or {}).get(key))


def _factor(
    sites: Sequence[LinearSite],
    plan: SitePlan,
    stats: Mapping[str, ActivationStats],
    ready: Factorization | None,
) -> FactoredWeight:
    weight = sites[0].weight.array()
    known = statistics_of(sites, stats)
    method = _method(plan, known)
    rank = _rank(plan)
    decomposition = decompose(method, weight, known)
    factorization = ready or decomposition.factorize(rank, plan.store)
    found = decomposition if method.metric == _metric(known) else None
    return _measured(sites, plan, factorization, known, found)


def remeasured(factored: FactoredWeight, stats: Mapping[str, ActivationStats]) -> FactoredWeight:
    """The same factors with their errors in the metric of other statistics."""
    known = statistics_of(factored.sites, stats)
    return _measured(factored.sites, factored.plan, factored.factorization, known)


def _metric(known: Known) -> str:
    return "weight" if evidence_in(known) == "none" else "activation"


def _measured(
    sites: Sequence[LinearSite],
    plan: SitePlan,
    factorization: Factorization,
    known: Known,
    found: Decomposition | None = None,
) -> FactoredWeight:
    """``factorization`` with its errors; ``found`` is the weight taken apart in their metric."""
    weight, rank = sites[0].weight.array(), _rank(plan)
    least = least_errors(weight, known, found)
    error = SiteError(
        weight=weight_error(weight, factorization),
        activation=(
            None if _metric(known) == "weight" else activation_error(weight, factorization, known)
        ),
        bound=float(np.sqrt(least[rank] / least[0])) if least[0] > 0 else 0.0,
    )
    return FactoredWeight(sites, plan, factorization, error, least)


def check_fits(table: SiteTable, plan: CompressionPlan) -> None:
    """Make sure that a plan, perhaps edited or made for another model, can be applied here.

    Raises:
        RequestError: a factored site is missing, has another shape, or an impossible rank, or
            sites that share a weight are planned differently, or the model cannot hold factors
            as they should be stored.
    """
    sites = {site.name: site for site in table.sites}
    decided: dict[str, tuple[str, int | None, Storage]] = {}
    for planned in plan.sites:
        if planned.decision == "factor":
            site = sites.get(planned.site)
            if site is None:
                raise RequestError(f"the plan factors {planned.site!r}, which the model lacks")
            shape = (planned.in_features, planned.out_features)
            if (
                shape != site.weight.shape
                or planned.matrices != site.weight.matrices
                or planned.weight != site.weight.key
            ):
                raise RequestError(
                    f"the plan was made for another model: {planned.site} is {planned.weight} "
                    f"{shape} in the plan, {site.weight.key} {site.weight.shape} in the model"
                )
            check_opset(planned.store, table.opset)
            if not 1 <= _rank(planned) <= min(shape):
                raise RequestError(
                    f"rank {planned.rank} of {planned.site} is not between 1 and {min(shape)}"
                )
        choice = (planned.decision, planned.rank, planned.store)
        if decided.setdefault(planned.weight, choice) != choice:
            raise RequestError(f"sites that share the weight {planned.weight} are planned apart")


def _rank(plan: SitePlan) -> int:
    if plan.rank is None:
        raise RequestError(f"the plan factors {plan.site!r} without a rank")
    return plan.rank


def _method(plan: SitePlan, known: Known) -> Method:
    if plan.method is None:
        raise RequestError(f"the plan factors {plan.site!r} without a method")
    method = make_method(plan.method.name, plan.method.options)
    evidence = evidence_in(known)
    if method.needs_activations and evidence == "none":
        raise RequestError(
            f"{plan.site} is planned with {plan.method.name}, which needs calibration data"
        )
    if method.needs_gradients and evidence != "gradients":
        raise RequestError(
            f"{plan.site} is planned with {plan.method.name}, which needs calibration data and "
            "gradients that reach the site"
        )
    return method
