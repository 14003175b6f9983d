"""Siblings that share a factor, from the evidence on each: decided, joined, and known as one site.

Nothing is measured again for a joined site: its input is that of its siblings, its gradients are
theirs side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from compress_onnx.graph_passes.allocation import get_allocator
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import ActivationStats, make_method
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.sharing import SharedGroup, shared_groups, why_apart
from compress_onnx.graph_passes.rewriting.join_siblings import JoinSiblingsPass
from compress_onnx.graph_passes.sites.families import families
from compress_onnx.graph_passes.sites.find import LinearSite, find_sites
from compress_onnx.pipeline.compress.study import Study, plan_study
from compress_onnx.pipeline.compress.subject import Subject
from compress_onnx.pipeline.evidence.gradients import OutputGradients


def share_siblings(subject: Subject, study: Study) -> Study:
    """Join the siblings of ``subject`` that lose less together, in place.

    Returns:
        What is known about the sites that there are now.

    Raises:
        RequestError: the request makes no sense for this model.
        NothingToCompressError: no weight can be factored with a gain.
    """
    request = study.request
    if request.siblings == "never" or not families(subject.table.sites):
        return study
    reason = why_apart(request)
    if reason is not None:
        note = f"siblings share no factor: {reason}"
        return replace(study, notes=(*study.notes, note))
    groups = shared_groups(
        subject.table.sites,
        plan_study(subject, study),
        make_method(request.method.name, request.method.options),
        study.stats,
        damage=get_allocator(request.allocation).damage,
    )
    known = join(subject, study, [group.sites for group in groups])
    return replace(known, notes=(*study.notes, *map(_note, groups)))


def rejoin(subject: Subject, study: Study, plan: CompressionPlan) -> Study:
    """Join the siblings of ``subject`` that ``plan`` factors together, in place.

    Raises:
        RequestError: the model has no such siblings, or their factors are to be rounded.
    """
    for site in plan.factored:
        if site.siblings and site.store != "same":
            raise RequestError(
                f"{site.site}: siblings that share a factor cannot be stored as {site.store}: "
                "plan them with --siblings never, or let the store be same"
            )
    return join(subject, study, [tuple(s.siblings) for s in plan.sites if s.siblings])


def join(subject: Subject, study: Study, groups: Sequence[Collection[str]]) -> Study:
    """Join ``groups`` of siblings, by name, in place; returns what is known about them then."""
    if not groups:
        return study
    JoinSiblingsPass(groups)(subject.model)
    subject.table = find_sites(subject.model)
    joined = [site for site in subject.table.sites if site.siblings]
    calibration, gradients = study.calibration, study.gradients
    if calibration is not None:
        calibration = replace(calibration, stats=_joined_stats(joined, calibration.stats))
    if gradients is not None:
        gradients = _joined_gradients(joined, gradients)
    return replace(study, calibration=calibration, gradients=gradients)


def _joined_stats(
    joined: Sequence[LinearSite], stats: Mapping[str, ActivationStats]
) -> dict[str, ActivationStats]:
    return {
        **stats,
        **{s.name: ActivationStats.beside([stats[name] for name in s.siblings]) for s in joined},
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
