"""Is what was written worth deploying in place of its original? Measured, and said in words.

1. A gain is a speed-up of at least :data:`LEAST_GAIN` whose interval lies above 1, or a file that
   is as much smaller. Without one it is not worth it.
2. What loses more than the drop that was asked for is not worth it either. Where none was asked
   for, :data:`LARGE_DROP` says what no user can want.
3. Where none was asked for, what loses more than :data:`SMALL_DROP` has to be validated on its task
   first. So has what was measured on no held-out samples at all.
4. Anything else can be deployed; where it is slower or larger all the same, a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.compress.choice import LEAST_GAIN
from compress_onnx.pipeline.compress.search import drop_of
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.benchmark import benchmark
from compress_onnx.pipeline.measure.latency import first_that_runs
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import MetricSpec
from compress_onnx.pipeline.results import Benchmark, Drop, Outcome, SizeReport
from compress_onnx.pipeline.runtime.samples import Samples

Advice = Literal["deploy", "validate first", "not worth it"]

SMALL_DROP: Mapping[str, float] = {
    "relative_l2": 0.1,
    "1 - cosine": 0.01,
    "accuracy_drop": 0.01,
    "ndcg_drop": 0.01,
}
LARGE_DROP: Mapping[str, float] = {
    "relative_l2": 0.5,
    "1 - cosine": 0.1,
    "accuracy_drop": 0.1,
    "ndcg_drop": 0.1,
}
"""Drops by quantity: what hardly any task feels, and what every task does."""

_WARMUP, _ROUNDS, _LIMIT_S = 3, 60, 2.0


class Figures(NamedTuple):
    """What is known about a candidate, as in :class:`pipeline.results.Outcome`."""

    size: SizeReport
    benchmark: Benchmark | None = None
    drop: Drop | None = None
    drop_on: str = ""
    max_drop: float | None = None
    notes: tuple[str, ...] = ()


def measure_outcome(
    reference: Path,
    candidate: Path,
    held_out: Samples | None,
    settings: RunSettings,
    *,
    feeds: Iterable[Mapping[str, Array]] | None,
    metric: MetricSpec | None = None,
    max_drop: float | None = None,
) -> Outcome:
    """Measure size, speed (for some seconds) and drop of ``candidate``, and judge it.

    Args:
        reference: the original.
        candidate: what was made of it.
        held_out: samples that made neither; None leaves the drop out.
        settings: how both are run.
        feeds: inputs to time both on, of several sizes: the first at which they run counts; None
            leaves speed out.
        metric: of the drop; None compares raw outputs.
        max_drop: what may be lost; None where nobody said.

    Raises:
        ModelFileError: a model cannot be read.
    """
    pair, notes = _Pair(reference, candidate, settings), []
    lost = None if held_out is None else pair.drop(held_out, metric)
    if isinstance(lost, str):
        notes.append(f"the outputs were not compared: {lost}")
    timed = None if feeds is None else first_that_runs(feeds, pair.timed)
    if isinstance(timed, str):
        notes.append(f"speed was not measured: {timed}")
    drop, drop_on = lost if isinstance(lost, tuple) else (None, "")
    return judged(
        Figures(
            size=model_size(reference, candidate),
            benchmark=timed[1] if isinstance(timed, tuple) else None,
            drop=drop,
            drop_on=drop_on,
            max_drop=max_drop,
            notes=tuple(notes),
        )
    )


@dataclass(frozen=True)
class _Pair:
    """Two models that are to compute the same."""

    reference: Path
    candidate: Path
    settings: RunSettings

    def drop(self, held_out: Samples, metric: MetricSpec | None) -> tuple[Drop, str] | str:
        """What the candidate loses on which samples; or why that cannot be told."""
        try:
            with self.settings.progress.step("validate", len(held_out)) as update:
                report = validate(
                    self.reference,
                    self.candidate,
                    held_out,
                    metric=metric,
                    spec=self.settings.session,
                    batch_size=self.settings.batch_size,
                    progress=update,
                )
        except CompressOnnxError as problem:
            return str(problem)
        return drop_of(report), f"{report.samples} samples of {report.origin}"

    def timed(self, inputs: Mapping[str, Array]) -> Benchmark:
        """Both in turn, for some seconds.

        Raises:
            DataError: they do not run on ``inputs``.
            ProviderError, ModelFileError: a session cannot be opened.
        """
        with self.settings.progress.step("benchmark"):
            return benchmark(
                self.reference,
                self.candidate,
                inputs,
                self.settings.session,
                warmup=_WARMUP,
                iterations=_ROUNDS,
                limit_s=_LIMIT_S,
                seed=self.settings.seed,
            )


def judged(figures: Figures) -> Outcome:
    """The figures with what they mean."""
    advice, verdict = _verdict(figures)
    return Outcome(
        size=figures.size,
        benchmark=figures.benchmark,
        drop=figures.drop,
        drop_on=figures.drop_on,
        advice=advice,
        verdict=f"{advice}: {verdict}",
        warnings=_warnings(figures),
        notes=figures.notes,
    )


def _verdict(figures: Figures) -> tuple[Advice, str]:
    """Rules 1 to 4."""
    timed, drop = figures.benchmark, figures.drop
    faster = timed is not None and timed.speedup >= LEAST_GAIN and timed.speedup_low > 1
    smaller = figures.size.reference_bytes >= LEAST_GAIN * figures.size.candidate_bytes
    measured = _measured(figures)
    if not faster and not smaller:
        return "not worth it", f"{measured}, and less than {LEAST_GAIN} times is no gain"
    if drop is None:
        return "validate first", (
            f"{measured}; nothing is known about its outputs: compress-onnx validate tells, on "
            "samples that it never saw"
        )
    lost = f"it loses {drop.value:.3g} ({drop.quantity}) on {figures.drop_on}"
    asked = figures.max_drop
    limit = LARGE_DROP[drop.quantity] if asked is None else asked
    if not drop.value <= limit:
        return "not worth it", (
            f"{lost}, more than {limit:g}: keep more of the model, calibrate on more data, or "
            "train it with --recover"
        )
    if asked is None and drop.value > SMALL_DROP[drop.quantity]:
        return "validate first", (
            f"{measured}; {lost}: whether your task stands that, only its own metric tells"
        )
    why = ""
    if not smaller:
        why = "for its speed alone: "
    elif timed is not None and not faster:
        why = "for its size alone, no speed-up is sure: "
    return "deploy", f"{why}{measured}; {lost}"


def _measured(figures: Figures) -> str:
    size, timed = figures.size, figures.benchmark
    share = f"{size.candidate_bytes / size.reference_bytes:.2f} times the size"
    if timed is None:
        return f"{share}, speed not measured"
    return f"{timed.speedup:.2f} times as fast {_interval(timed)}, {share}"


def _warnings(figures: Figures) -> tuple[str, ...]:
    """Where the candidate is worse than its original."""
    found = []
    timed, size = figures.benchmark, figures.size
    if timed is not None and timed.speedup_high < 1:
        found.append(
            f"slower than the original: {timed.speedup:.2f} times as fast {_interval(timed)}"
        )
    if size.candidate_bytes > size.reference_bytes:
        found.append(
            f"larger than the original: {size.candidate_bytes:,} bytes, not "
            f"{size.reference_bytes:,}"
        )
    return tuple(found)


def _interval(timed: Benchmark) -> str:
    return f"[{timed.speedup_low:.2f}, {timed.speedup_high:.2f}]"
