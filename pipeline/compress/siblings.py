"""Siblings that share a factor, from the evidence on each: decided, joined, and known as one site.

Nothing is measured again for a joined site: its input is that of its siblings, its gradients are
theirs side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from compress_onnx.graph_passes.allocation import get_allocator
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.sharing import SharedGroup, shared_groups, why_apart
from compress_onnx.graph_passes.sites.families import families
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.basis import Basis, plan_on
from compress_onnx.pipeline.evidence.gradients import OutputGradients


def share_siblings(basis: Basis) -> Basis:
    """Join the siblings that lose less together, where the request lets them.

    Returns:
        What is known about the sites that there are then; ``basis`` stays as it is.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
    """
    request, sites = basis.request, basis.original.table.sites
    if request.siblings == "never" or not families(sites):
        return basis
    reason = why_apart(request)
    if reason is not None:
        return basis.noting(f"siblings share no factor: {reason}")
    groups = shared_groups(
        sites,
        plan_on(basis),
        basis.method,
        basis.decompositions,
        damage=get_allocator(request.allocation).damage,
    )
    return _joined(basis, [group.sites for group in groups]).noting(*map(_note, groups))


def rejoin(basis: Basis, plan: CompressionPlan) -> Basis:
    """Join the siblings that ``plan`` factors together.

    Raises:
        RequestError: the model has no such siblings, or their factors are to be rounded.
    """
    for site in plan.factored:
        if site.siblings and site.store != "same":
            raise RequestError(
                f"{site.site}: siblings that share a factor cannot be stored as {site.store}: "
                "plan them with --siblings never, or let the store be same"
            )
    return _joined(basis, [tuple(s.siblings) for s in plan.sites if s.siblings])


def _joined(basis: Basis, groups: Sequence[Collection[str]]) -> Basis:
    """The basis with ``groups`` of siblings, by name, as one site each."""
    if not groups:
        return basis
    original = basis.original.joined(groups)
    sites = [site for site in original.table.sites if site.siblings]
    gradients = basis.gradients
    return replace(
        basis,
        original=original,
        decompositions=basis.decompositions.extended(_joined_stats(sites, basis.stats)),
        gradients=None if gradients is None else _joined_gradients(sites, gradients),
    )


def _joined_stats(
    joined: Sequence[LinearSite], stats: Mapping[str, ActivationStats]
) -> dict[str, ActivationStats]:
    return {
        site.name: ActivationStats.beside([stats[name] for name in site.siblings])
        for site in joined
        if all(name in stats for name in site.siblings)
    }


def _joined_gradients(joined: Sequence[LinearSite], gradients: OutputGradients) -> OutputGradients:
    """A position weighs what it weighs for all siblings together."""
    weights = dict(gradients.weights)
    for site in joined:
        batches = zip(*(gradients.weights[name] for name in site.siblings), strict=True)
        weights[site.name] = [sum(batch[1:], start=batch[0]) for batch in batches]
    return replace(gradients, weights=weights)


def _note(group: SharedGroup) -> str:
    return (
        f"{', '.join(group.sites)} share one down: together they do {group.ratio:.2f} of the "
        "damage that they do apart, at equal parameters"
    )
