"""The smallest model within a drop: bisection of the share on measured validation.

The drop is that of the task's metric: ``accuracy_drop``, one minus the mean ``cosine``, or without
a metric the worst output's ``relative_l2``. It is taken to fall as the share rises, which holds up
to the noise of the validation set; what is returned is always a share that was measured and held.
How sure that is, the drop's 95 % interval says.
"""

from __future__ import annotations

from pathlib import Path

from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.planning.request import QUANTITIES, CompressionSpec
from compress_onnx.pipeline.recipes.experiment import Experiment
from compress_onnx.pipeline.results import Drop, SearchReport, SearchStep, ValidationReport

STEPS = 6
"""Bisections of (0, 1): the answer is within 1/64 of the smallest share."""


def drop_of(validation: ValidationReport) -> Drop:
    """The drop that a validation measured."""
    metrics = validation.metrics
    if "accuracy_drop" in metrics:
        return Drop(
            quantity="accuracy_drop",
            value=metrics["accuracy_drop"],
            low=metrics["accuracy_drop_low"],
            high=metrics["accuracy_drop_high"],
        )
    if "cosine" in metrics:
        return Drop(
            quantity="1 - cosine",
            value=1 - metrics["cosine"],
            low=1 - metrics["cosine_high"],
            high=1 - metrics["cosine_low"],
        )
    worst = max(validation.outputs, key=lambda output: output.relative_l2)
    return Drop(
        quantity="relative_l2",
        value=worst.relative_l2,
        low=worst.relative_l2_low,
        high=worst.relative_l2_high,
    )


def smallest_within(
    experiment: Experiment, request: CompressionSpec, max_drop: float, folder: Path
) -> tuple[CompressionSpec, SearchReport]:
    """Find the smallest share of ``request`` whose drop is at most ``max_drop``.

    Args:
        experiment: with validation data.
        request: everything but the share.
        max_drop: what may be lost.
        folder: takes the models that are tried.

    Returns:
        The request with the share that was found, and what was tried.

    Raises:
        RequestError: there is no validation data to measure on.
        NothingToCompressError: no share that was tried stays within the drop.
    """
    held_out = experiment.held_out
    if held_out is None:
        raise RequestError("--max-drop needs data to measure the drop on: add validation")
    low, high = 0.0, 1.0
    steps: list[SearchStep] = []
    for _ in range(STEPS):
        share = (low + high) / 2
        step = _measure(experiment, request, share, max_drop, folder)
        steps.append(step)
        # Where every weight stays dense, nothing is lost: an answer can only be smaller.
        if step.within or step.problem is not None:
            high = share
        else:
            low = share
    held = [step for step in steps if step.within]
    if not held:
        largest = max(step.share for step in steps)
        raise NothingToCompressError(
            f"no share up to {largest:.0%} of {QUANTITIES[request.budget]} stays within a drop of "
            f"{max_drop:g}: allow more, or use a stronger method"
        )
    found = min(held, key=lambda step: step.share)
    report = SearchReport(
        max_drop=max_drop,
        steps=tuple(steps),
        found=found,
        measured_on=f"{len(held_out)} samples of {held_out.origin}",
    )
    return request.with_share(found.share), report


def _measure(
    experiment: Experiment, request: CompressionSpec, share: float, max_drop: float, folder: Path
) -> SearchStep:
    candidate = folder / f"share-{share:.6f}" / "model.onnx"
    candidate.parent.mkdir(parents=True)
    try:
        plan = experiment.compress(request.with_share(share), candidate)
    except NothingToCompressError as error:
        return SearchStep(share=share, within=False, problem=str(error))
    validation = experiment.validate(candidate)
    assert validation is not None  # see smallest_within
    drop = drop_of(validation)
    return SearchStep(
        share=share,
        parameters_after=plan.parameters_after,
        drop=drop,
        within=drop.value <= max_drop,
    )
