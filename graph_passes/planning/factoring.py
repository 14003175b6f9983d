"""Carry a plan out numerically: factor one weight at a time and measure the error of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Factorization, Term
from compress_onnx.graph_passes.factorization.error import activation_error, weight_error
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.factorization.storage import rounded
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.evidence import evidence_in
from compress_onnx.graph_passes.planning.fitting import (
    check_evidence,
    check_fits,
    planned_method,
    planned_rank,
)
from compress_onnx.graph_passes.planning.plan import CompressionPlan, SiteError, SitePlan
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.grouping import group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite


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
    decompositions: Decompositions,
    ready: Mapping[str, Factorization] | None = None,
) -> Iterator[FactoredWeight]:
    """Factor the weights that ``plan`` says, one at a time, so that only one is in memory.

    Args:
        table: the sites of the model.
        plan: ranks and methods.
        decompositions: of its weights, with what is known about their inputs.
        ready: factorizations by weight key that are there already.

    Raises:
        RequestError: the plan does not fit the model, which is said before anything is factored;
            or a weight is not finite, or its factors do not fit into its type.
    """
    check_fits(table, plan)
    check_evidence(table, plan, decompositions.stats)
    groups = group_by_weight(table.sites)
    planned = {site.weight: site for site in plan.factored}
    for key, site_plan in planned.items():
        yield _factor(groups[key], site_plan, decompositions, (ready or {}).get(key))


def _factor(
    sites: Sequence[LinearSite],
    plan: SitePlan,
    decompositions: Decompositions,
    ready: Factorization | None,
) -> FactoredWeight:
    weight = sites[0].weight.array()
    if not np.isfinite(weight.astype(np.float32, copy=False)).all():
        raise RequestError(f"the plan factors {plan.site!r}, which has NaN or infinite values")
    method, rank = planned_method(plan), planned_rank(plan)
    try:
        factorization = ready or decompositions.of(method, sites, rank).factorize(rank, plan.store)
    except RequestError as misfit:
        raise RequestError(f"{plan.site}: {misfit}") from misfit
    return _measured(sites, plan, factorization, decompositions)


def thinned_weight(
    down: LinearSite, plan: SitePlan, folded: Folded, decompositions: Decompositions
) -> FactoredWeight:
    """The layer ``down`` for some of its inputs: factors of which the first chooses columns."""
    dtype = down.weight.array().dtype
    chooses = np.zeros((down.in_features, len(folded.kept)), dtype)
    chooses[folded.kept, np.arange(len(folded.kept))] = 1
    term = Term(chooses, rounded(folded.weight, dtype))
    return _measured([down], plan, Factorization((term,), folded.bias), decompositions)


def remeasured(factored: FactoredWeight, decompositions: Decompositions) -> FactoredWeight:
    """The same factors with their errors in the metric of other statistics."""
    return _measured(factored.sites, factored.plan, factored.factorization, decompositions)


def _measured(
    sites: Sequence[LinearSite],
    plan: SitePlan,
    factorization: Factorization,
    decompositions: Decompositions,
) -> FactoredWeight:
    """``factorization`` with its errors, in the metric of what ``decompositions`` know."""
    weight, rank, known = sites[0].weight.array(), plan.kept, decompositions.known(sites)
    least = decompositions.least(sites)
    assert rank is not None
    rank = min(rank, len(least) - 1)  # more neurons than outputs: a weight of full rank
    error = SiteError(
        weight=weight_error(weight, factorization),
        activation=(
            None if evidence_in(known) == "none" else activation_error(weight, factorization, known)
        ),
        bound=float(np.sqrt(least[rank] / least[0])) if least[0] > 0 else 0.0,
    )
    return FactoredWeight(sites, plan, factorization, error, least)
