"""Carry a plan out numerically: factor each weight and measure its error.

Weights are independent jobs, which :data:`~graph_passes.planning.decompositions.Spread` carries
out. A job takes a weight with what is known about its inputs, and comes back as factors, errors and
the decomposition, which is kept for other budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Factorization, Known, Term
from compress_onnx.graph_passes.factorization.base import Decomposition
from compress_onnx.graph_passes.factorization.error import (
    activation_error,
    least_errors,
    weight_error,
)
from compress_onnx.graph_passes.factorization.neurons import Folded
from compress_onnx.graph_passes.factorization.stack import decompose
from compress_onnx.graph_passes.factorization.storage import rounded
from compress_onnx.graph_passes.planning.decompositions import (
    Decompositions,
    largest_paying_rank,
    metric_of,
)
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
    """Factor the weights that ``plan`` says; only those that are under way are in memory.

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
    jobs = (
        _job(groups[key], site_plan, decompositions, (ready or {}).get(key))
        for key, site_plan in planned.items()
    )
    done = decompositions.spread(_carried_out, jobs)
    for (key, site_plan), made in zip(planned.items(), done, strict=True):
        sites = groups[key]
        if made.nested is not None:
            decompositions.keep(planned_method(site_plan), sites, made.nested)
        decompositions.keep_least(sites, made.least)
        yield FactoredWeight(sites, site_plan, made.factorization, made.error, made.least)


@dataclass(frozen=True)
class _Job:
    """All that it takes to factor one weight by its plan, and to measure the error.

    Attributes:
        plan: of one of its sites.
        weight: ``[.., K, N]``.
        known: about the inputs of each of its matrices.
        ready: its factors, where they are there already.
        least: ``[q + 1]`` the least squared errors, where they are known already.
    """

    plan: SitePlan
    weight: Array
    known: Known
    ready: Factorization | None
    least: Float64 | None


@dataclass(frozen=True)
class _Made:
    """What a job comes to; ``nested`` is the decomposition that it made, where it can be kept."""

    factorization: Factorization
    error: SiteError
    least: Float64
    nested: Decomposition | None


def _job(
    sites: Sequence[LinearSite],
    plan: SitePlan,
    decompositions: Decompositions,
    ready: Factorization | None,
) -> _Job:
    weight = sites[0].weight.array()
    if not np.isfinite(weight.astype(np.float32, copy=False)).all():
        raise RequestError(f"the plan factors {plan.site!r}, which has NaN or infinite values")
    if ready is None:
        kept = decompositions.kept(planned_method(plan), sites, planned_rank(plan))
        ready = None if kept is None else _factors(kept, plan)
    return _Job(plan, weight, decompositions.known(sites), ready, decompositions.kept_least(sites))


def _carried_out(job: _Job) -> _Made:
    factorization, least, nested = job.ready, job.least, None
    if factorization is None:
        method, limit = planned_method(job.plan), largest_paying_rank(*job.weight.shape[-2:])
        found = decompose(method, job.weight, job.known)
        nested = found.nested(limit)
        fits = nested is not None and planned_rank(job.plan) <= limit
        factorization = _factors(nested if nested is not None and fits else found, job.plan)
        if least is None and nested is not None and method.metric == metric_of(job.known):
            least = least_errors(job.weight, job.known, nested)
    if least is None:
        least = least_errors(job.weight, job.known)
    error = _error(job.weight, job.plan, factorization, job.known, least)
    return _Made(factorization, error, least, nested)


def _factors(decomposition: Decomposition, plan: SitePlan) -> Factorization:
    try:
        return decomposition.factorize(planned_rank(plan), plan.store)
    except RequestError as misfit:
        raise RequestError(f"{plan.site}: {misfit}") from misfit


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
    least, known = decompositions.least(sites), decompositions.known(sites)
    error = _error(sites[0].weight.array(), plan, factorization, known, least)
    return FactoredWeight(sites, plan, factorization, error, least)


def _error(
    weight: Array, plan: SitePlan, factorization: Factorization, known: Known, least: Float64
) -> SiteError:
    """What ``factorization`` loses of ``weight``, beside the least at its rank."""
    assert plan.kept is not None
    rank = min(plan.kept, len(least) - 1)  # more neurons than outputs: a weight of full rank
    return SiteError(
        weight=weight_error(weight, factorization),
        activation=(
            None if evidence_in(known) == "none" else activation_error(weight, factorization, known)
        ),
        bound=float(np.sqrt(least[rank] / least[0])) if least[0] > 0 else 0.0,
    )
