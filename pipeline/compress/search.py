"""The smallest model within a drop: bisection of the share on measured validation.

One half of the held-out samples chooses the share, the other half tells the drop of the answer:
what chooses never reports.

The drop is that of the task's metric: ``accuracy_drop``, ``ndcg_drop``, one minus the mean
``cosine``, or without a metric the worst output's ``relative_l2``. It is taken to fall as the share
rises, which holds up to the noise of the validation set; what is returned is always a model that
was measured and held. How sure that is, the drop's 95 % interval says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from compress_onnx.graph_passes.errors import DataError, NothingToCompressError
from compress_onnx.graph_passes.planning.request import QUANTITIES, CompressionSpec
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import MetricSpec
from compress_onnx.pipeline.results import Drop, SearchReport, SearchStep, ValidationReport
from compress_onnx.pipeline.runtime.samples import Samples, every_nth

STEPS = 6
"""Bisections of (0, 1): the answer is within 1/64 of the smallest share."""


class NoShareWithinError(NothingToCompressError):
    """No share that was tried stays within the drop; ``steps`` are those that were."""

    def __init__(self, max_drop: float, quantity: str, steps: tuple[SearchStep, ...]) -> None:
        self.steps = steps
        largest = max(step.share for step in steps)
        super().__init__(
            f"no share up to {largest:.0%} of {quantity} stays within a drop of "
            f"{max_drop:g}{_nearest(steps)}: allow more, or use a stronger method"
        )


def _nearest(steps: tuple[SearchStep, ...]) -> str:
    """The step with the least drop, in words; nothing where none was measured."""
    measured_steps = [(step.drop, step.share) for step in steps if step.drop is not None]
    if not measured_steps:
        return ""
    drop, share = min(measured_steps, key=lambda pair: pair[0].value)
    return f" (the nearest, {share:.1%}, has {drop.value:.4g} of {drop.quantity})"


@dataclass(frozen=True, eq=False)
class Found:
    """The smallest model that held, what was tried, and the samples that chose nothing."""

    compressed: Compressed
    report: SearchReport
    reporting: Samples


def drop_of(validation: ValidationReport) -> Drop:
    """The drop that a validation measured."""
    metrics = validation.metrics
    for quantity in ("accuracy_drop", "ndcg_drop"):
        if quantity in metrics:
            return Drop(
                quantity=quantity,
                value=metrics[quantity],
                low=metrics[f"{quantity}_low"],
                high=metrics[f"{quantity}_high"],
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
    learned: Learned,
    request: CompressionSpec,
    max_drop: float,
    held_out: Samples,
    metric: MetricSpec | None = None,
) -> Found:
    """Find the smallest share of ``request`` whose drop is at most ``max_drop``.

    Args:
        learned: the model, which every step compresses anew.
        request: everything but the share.
        max_drop: what may be lost.
        held_out: samples that calibration never saw.
        metric: of the drop; None compares raw outputs.

    Raises:
        DataError: there are too few samples to cut them in halves.
        NoShareWithinError: no share that was tried stays within the drop.
    """
    reporting, choosing = halves(held_out)
    low, high = 0.0, 1.0
    steps: list[SearchStep] = []
    best: tuple[SearchStep, Compressed, ValidationReport] | None = None
    for _ in range(STEPS):
        share = (low + high) / 2
        try:
            compressed = learned.compress(request.with_share(share))
        except NothingToCompressError as error:
            # Every weight stays dense, and nothing is lost: an answer can only be smaller.
            steps.append(SearchStep(share=share, within=False, problem=str(error)))
            high = share
            continue
        validation = measured(learned, compressed, choosing, metric)
        drop = drop_of(validation)
        step = SearchStep(
            share=share,
            parameters_after=compressed.plan.parameters_after,
            drop=drop,
            within=drop.value <= max_drop,
        )
        steps.append(step)
        if step.within:
            high, best = share, (step, compressed, validation)
        else:
            low = share
    if best is None:
        raise NoShareWithinError(max_drop, QUANTITIES[request.budget], tuple(steps))
    step, compressed, validation = best
    report = SearchReport(
        max_drop=max_drop,
        steps=tuple(steps),
        found=step,
        measured_on=f"{validation.samples} samples of {validation.origin}",
        reported=drop_of(measured(learned, compressed, reporting, metric)),
        reported_on=f"{len(reporting)} samples of {reporting.origin}",
    )
    return Found(compressed, report, reporting)


def halves(held_out: Samples) -> tuple[Samples, Samples]:
    """What reports, and what chooses.

    Raises:
        DataError: there are fewer than two samples.
    """
    if len(held_out) < 2:
        raise DataError(f"{held_out.origin}: one sample cannot be cut in halves: give more")
    chosen = every_nth(len(held_out), 2)
    reporting, choosing = (held_out.select(np.flatnonzero(half)) for half in (~chosen, chosen))
    return (
        replace(reporting, origin=f"{held_out.origin}, the half that chose nothing"),
        replace(choosing, origin=f"{held_out.origin}, the half that chose the share"),
    )


def measured(
    learned: Learned, compressed: Compressed, samples: Samples, metric: MetricSpec | None
) -> ValidationReport:
    """Hold a compressed model against its original on ``samples``."""
    settings = learned.settings
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        candidate = Path(folder) / "model.onnx"
        compressed.write(candidate)
        with settings.progress.step("validate", len(samples)) as update:
            return validate(
                learned.original.path,
                candidate,
                samples,
                metric=metric,
                spec=settings.session,
                batch_size=settings.batch_size,
                progress=update,
            )
