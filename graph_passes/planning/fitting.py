"""Whether a plan, perhaps edited by hand or made for another model, can be carried out on a model.

Everything is checked that can be without computing a factor, so that what is wrong is said at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, Known, Method, make_method
from compress_onnx.graph_passes.planning.evidence import evidence_in, statistics_of, suffices
from compress_onnx.graph_passes.planning.plan import CompressionPlan, SitePlan, check_opset
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.grouping import WeightGroups, group_by_weight
from compress_onnx.graph_passes.sites.linear_site import LinearSite


def check_fits(table: SiteTable, plan: CompressionPlan) -> None:
    """Make sure that ``plan`` is about the model whose sites are ``table``, and says all it must.

    Raises:
        RequestError: a site is planned twice, or without a rank or a method though it is factored,
            or with a rank though it is not; a factored site is missing or another one; sites that
            share a weight are planned differently; a rank or a method is impossible; siblings are
            not joined; or the model cannot hold factors as they should be stored.
    """
    sites = {site.name: site for site in table.sites}
    for name, count in Counter(site.site for site in plan.sites).items():
        if count > 1:
            raise RequestError(f"the plan names the site {name!r} {count} times: keep one of them")
    for planned in plan.sites:
        if planned.decision == "factor":
            _check_same(planned, sites.get(planned.site))
            _check_how(planned)
            check_opset(planned.store, table.opset)
        elif planned.decision == "neurons":
            _check_same(planned, sites.get(planned.site))
            most = planned.in_features if planned.ffn == planned.site else planned.out_features
            if not 1 <= (planned.neurons or 0) <= most:
                raise RequestError(
                    f"{planned.site} keeps {planned.neurons} neurons, which is not between 1 and "
                    f"{most}"
                )
        elif planned.rank is not None:
            raise RequestError(
                f"the plan leaves {planned.site!r} as it is ({planned.decision}), but gives it the "
                f"rank {planned.rank}: let the rank be null, or the decision factor"
            )
    _check_together(group_by_weight(table.sites), plan)


def check_evidence(
    table: SiteTable, plan: CompressionPlan, stats: Mapping[str, ActivationStats]
) -> None:
    """Make sure that there is what the methods of a plan that fits go by.

    Args:
        table: the sites of the model.
        plan: that :func:`check_fits` let pass.
        stats: activation statistics by matrix name.

    Raises:
        RequestError: a method needs statistics or gradients that there are not, or these are about
            sites of other shapes.
    """
    groups = group_by_weight(table.sites)
    for planned in {site.weight: site for site in plan.factored}.values():
        sites = groups[planned.weight]
        known = statistics_of(sites, stats)
        _check_suffices(planned, known)
        for seen in known:
            if seen is not None and len(seen.mean) != sites[0].in_features:
                raise RequestError(
                    f"the statistics of {planned.site} are about {len(seen.mean)} inputs, it has "
                    f"{sites[0].in_features}: calibrate this model"
                )


def _check_suffices(planned: SitePlan, known: Known) -> None:
    method, evidence = planned_method(planned), evidence_in(known)
    if suffices(evidence, method):
        return
    assert planned.method is not None
    needs = "calibration data"
    if method.needs_gradients:
        needs += " and gradients that reach the site"
    raise RequestError(f"{planned.site} is planned with {planned.method.name}, which needs {needs}")


def planned_rank(planned: SitePlan) -> int:
    """The rank of a site that is factored.

    Raises:
        RequestError: it has none.
    """
    if planned.rank is None:
        raise RequestError(f"the plan factors {planned.site!r} without a rank")
    return planned.rank


def planned_method(planned: SitePlan) -> Method:
    """The method of a site that is factored.

    Raises:
        RequestError: it has none, or one that there is not.
    """
    if planned.method is None:
        raise RequestError(f"the plan factors {planned.site!r} without a method")
    try:
        return make_method(planned.method.name, planned.method.options)
    except RequestError as error:
        raise RequestError(f"the plan of {planned.site!r}: {error}") from error


def _check_same(planned: SitePlan, site: LinearSite | None) -> None:
    """Whether the site is what the plan takes it for."""
    if site is None:
        unjoined = planned.siblings and "; it stands for siblings: join these first"
        raise RequestError(
            f"the plan factors {planned.site!r}, which the model lacks{unjoined or ''}"
        )
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
    if set(planned.siblings) != set(site.siblings):
        raise RequestError(
            f"the plan lets {planned.site!r} stand for the siblings "
            f"{', '.join(planned.siblings) or 'none'}, in the model it stands for "
            f"{', '.join(site.siblings) or 'none'}"
        )


def _check_how(planned: SitePlan) -> None:
    """Whether there are such a rank, such a method, and such a store for it."""
    most = min(planned.in_features, planned.out_features)
    if not 1 <= planned_rank(planned) <= most:
        raise RequestError(f"rank {planned.rank} of {planned.site} is not between 1 and {most}")
    planned_method(planned)
    if planned.siblings and planned.store != "same":
        raise RequestError(
            f"{planned.site}: siblings that share a factor cannot be stored as {planned.store}: "
            "let the store be same"
        )


def _check_together(groups: WeightGroups, plan: CompressionPlan) -> None:
    """Whether all sites of a weight that is factored are planned, and alike."""
    planned = {site.site: site for site in plan.sites}
    for first in plan.factored:
        for site in groups[first.weight]:
            other = planned.get(site.name)
            if other is None or _how(other) != _how(first):
                raise RequestError(
                    f"sites that share the weight {first.weight} are planned apart: plan "
                    f"{site.name!r} as {first.site!r}"
                )


def _how(planned: SitePlan) -> tuple[object, ...]:
    return planned.decision, planned.rank, planned.method, planned.store


def recounted(table: SiteTable, plan: CompressionPlan) -> CompressionPlan:
    """``plan`` with the parameters and bytes that its decisions really mean in this model."""
    sites = {site.name: site for site in table.sites}
    return plan.model_copy(
        update={
            "sites": tuple(
                _recounted(planned, sites[planned.site]) if planned.site in sites else planned
                for planned in plan.sites
            )
        }
    )


def _recounted(planned: SitePlan, site: LinearSite) -> SitePlan:
    before, after = parameters_of(site, planned.rank if planned.decision == "factor" else None)
    if planned.decision == "neurons" and planned.neurons is not None:
        all_neurons = site.in_features if planned.ffn == site.name else site.out_features
        after = before * planned.neurons // all_neurons
    return planned.model_copy(
        update={
            "itemsize": site.weight.itemsize,
            "parameters_before": before,
            "parameters_after": after,
        }
    )


def parameters_of(site: LinearSite, rank: int | None) -> tuple[int, int]:
    """What the weight of ``site`` has dense, and as factors of ``rank`` (None: it stays dense)."""
    (rows, columns), matrices = site.weight.shape, site.weight.matrices
    before = matrices * rows * columns
    return before, before if rank is None else matrices * rank * (rows + columns)
