"""The smallest, fastest model within a drop: forms and rivals measured side by side.

A candidate is a structure and a way to hold numbers:

======================  ============================================================================
structure               all of the weights; networks with fewer neurons; these and low-rank factors
numbers                 floats; integers with static scales; for size, 8- or 4-bit weights
======================  ============================================================================

Of each family (a structure and numbers) the smallest share within the drop is found by bisection,
on one half of the held-out samples. What is left then runs against the rivals
(:mod:`~pipeline.compress.rivals`), interleaved; the other half reports.

On the CPU, ONNX Runtime is kept from a fusion that costs more than it saves
(:mod:`graph_passes.rewriting.unfused_norms`), where the original is faster without it.

Rules:

1. A rival or the original wins unless ours is at least :data:`LEAST_GAIN` times as good.
2. What chooses never reports.
3. Trials are logged, by all that decides their outcome: a second call measures none again.
4. No trial starts after the time is up; what was found until then counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import (
    CompressOnnxError,
    DataError,
    NothingToCompressError,
    RequestError,
)
from compress_onnx.graph_passes.factorization.rounding import LIMIT
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.integers import IntegerForm
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.rivals import RIVALS, weight_only
from compress_onnx.pipeline.compress.search import drop_of, halves
from compress_onnx.pipeline.compress.trial_log import TrialLog
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.model_file import model_size, save_model
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.measure.benchmark import (
    BoundModel,
    Times,
    interleave,
    speedup,
    speedup_interval,
)
from compress_onnx.pipeline.measure.latency import benchmark_feeds
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import BenchmarkSpec, MetricSpec
from compress_onnx.pipeline.results import Drop, OptimizeReport, Trial
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec

Objective = Literal["latency", "size"]
Numbers = Literal["floats", "integers", "8-bit weights", "4-bit weights"]

LEAST_GAIN = 1.02
"""How many times as good as the best rival ours has to be."""

STEPS = 4
"""Bisections of a share."""

ORIGINAL = "original"
UNFUSED = "original, sums and norms apart"
_FORMAT = "trial 1"


@dataclass(frozen=True)
class OptimizeSpec:
    """What is wanted.

    Attributes:
        max_drop: what may be lost.
        objective: what is to be least.
        benchmark: the size of one inference, and how it is run.
        integers: whether layers may multiply integers.
        limit: the largest integer of a weight.
        time_s: when no trial starts any more.
    """

    max_drop: float = 0.01
    objective: Objective = "latency"
    benchmark: BenchmarkSpec = field(default_factory=BenchmarkSpec)
    integers: bool = True
    limit: int = LIMIT
    time_s: float = 900.0


@dataclass(frozen=True)
class _Family:
    """A structure and numbers; ``build`` writes the model of a share, 1 for all of the weights."""

    name: str
    build: Callable[[float, Path], None]


def optimize(
    learned: Learned,
    held_out: Samples,
    output: Path,
    spec: OptimizeSpec | None = None,
    *,
    metric: MetricSpec | None = None,
    log: Path | None = None,
) -> OptimizeReport:
    """Find the best model within the drop, and write it to ``output``.

    Args:
        learned: the model, from calibration data.
        held_out: samples that calibration never saw.
        output: the ``.onnx`` file; replaced in one step.
        spec: what is wanted.
        metric: of the drop; None compares raw outputs.
        log: a file of trials, read and added to; None keeps none.

    Raises:
        RequestError: nothing was learned from samples, or the log is not one.
        DataError: there are too few samples to cut them in halves, or they do not fit.
        OutputError: ``output`` cannot be written.
    """
    if learned.samples is None:
        raise RequestError("optimize needs calibration data: forms are chosen by it")
    spec = spec or OptimizeSpec()
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        return _Search(learned, held_out, spec, metric=metric, log=log, folder=Path(folder)).run(
            output
        )


class _Search:
    """One call of :func:`optimize`."""

    def __init__(
        self,
        learned: Learned,
        held_out: Samples,
        spec: OptimizeSpec,
        *,
        metric: MetricSpec | None,
        log: Path | None,
        folder: Path,
    ) -> None:
        self._learned, self._spec, self._metric, self._folder = learned, spec, metric, folder
        self._reporting, self._choosing = halves(held_out)
        self._log = TrialLog(log, self._key_of_all())
        self._deadline = time.monotonic() + spec.time_s
        self._builders: dict[str, Callable[[Path], None]] = {}
        self._trials: dict[str, Trial] = {}
        self._notes: list[str] = []
        self._unfused = False

    def run(self, output: Path) -> OptimizeReport:
        """Try, choose, write, report."""
        for name, write in RIVALS.items():
            self._try(name, partial(write, self._learned.original.path), rival=True)
        self._unfused = self._gains_by_unfusing()
        if self._unfused:
            self._try(UNFUSED, lambda output: self._save(self._learned.original.copy(), output))
        for family in self._families():
            self._bisect(family)
        finalists = self._finalists()
        timed = self._timed(finalists)
        best = self._best([trial for trial in timed if not trial.rival])
        fallback = self._best([trial for trial in timed if trial.rival])
        assert fallback is not None  # the original is always within
        winner = fallback
        if best is not None and self._gain(best, fallback) >= LEAST_GAIN:
            winner = best
        if winner.name == ORIGINAL:
            save_model(self._learned.original.copy(), output)
        else:
            save_model(ir.load(self._path(winner.name)), output)
        reported = {trial.name: self._reported(trial) for trial in timed}
        return OptimizeReport(
            max_drop=self._spec.max_drop,
            objective=self._spec.objective,
            provider=self._session.provider,
            inputs=self._inputs,
            trials=tuple(reported.get(name, trial) for name, trial in self._trials.items()),
            winner=winner.name,
            verdict=self._verdict(reported[winner.name], best, fallback),
            chosen_on=f"{len(self._choosing)} samples of {self._choosing.origin}",
            reported_on=f"{len(self._reporting)} samples of {self._reporting.origin}",
            notes=tuple(self._notes),
        )

    def _families(self) -> Iterator[_Family]:
        """In the order in which they are worth the time."""
        if self._spec.integers:
            yield _Family("neurons, integers", self._builder("neurons", "integers"))
        yield _Family("neurons", self._builder("neurons", "floats"))
        yield _Family("neurons and low rank", self._builder("both", "floats"))
        if self._spec.objective == "size" and self._spec.integers:
            yield _Family("neurons, 4-bit weights", self._builder("neurons", "4-bit weights"))
            yield _Family("neurons, 8-bit weights", self._builder("neurons", "8-bit weights"))

    def _builder(
        self, structure: Literal["neurons", "both"], numbers: Numbers
    ) -> Callable[[float, Path], None]:
        def build(share: float, output: Path) -> None:
            model = self._learned.original.copy() if share == 1 else self._thinned(structure, share)
            if numbers == "integers":
                assert self._learned.samples is not None
                settings, limit = self._learned.settings, self._spec.limit
                # OpenVINO knows QDQ for what it is, and no operators of ONNX Runtime.
                form: IntegerForm = "qdq" if self._session.provider == "openvino" else "fused"
                rounded = round_model(
                    model, self._learned.samples, settings, form=form, limit=limit
                )
                if not rounded.integers:
                    raise NothingToCompressError("no layer can multiply integers")
                self._save(rounded.model, output)
            else:
                self._save(model, output)
            if numbers in {"8-bit weights", "4-bit weights"}:
                weight_only(output, output, 4 if numbers == "4-bit weights" else 8)

        return build

    def _save(self, model: ir.Model, output: Path) -> None:
        if self._unfused:
            UnfuseNormsPass()(model)
        save_model(model, output)

    def _gains_by_unfusing(self) -> bool:
        """Whether the original is faster without the fusion of sums and norms."""
        model = self._learned.original.copy()
        if self._session.provider != "cpu" or not UnfuseNormsPass()(model).modified:
            return False
        path = self._folder / "unfused.onnx"
        save_model(model, path)
        times = self._interleaved([self._learned.original.path, path])
        path.unlink()
        return speedup(times) >= LEAST_GAIN

    def _thinned(self, structure: Literal["neurons", "both"], share: float) -> ir.Model:
        request = CompressionSpec(params=share, sequential=False)
        method = MethodSpec(name="neurons") if structure == "neurons" else request.method
        ffns: Literal["neurons"] = "neurons"
        request = request.model_copy(update={"method": method, "ffns": ffns})
        return self._learned.compress(request).model

    def _bisect(self, family: _Family) -> None:
        """Try shares of ``family`` until the smallest within the drop is known to 1/16."""
        low, high = 0.0, 1.0
        whole = self._try_share(family, 1.0)
        if whole is None or not whole.within:
            return
        for _ in range(STEPS):
            share = (low + high) / 2
            trial = self._try_share(family, share)
            if trial is None:
                return
            if trial.within:
                high = share
            else:
                low = share

    def _try_share(self, family: _Family, share: float) -> Trial | None:
        if share == 1 and family.name in {"neurons", "neurons and low rank"}:
            return Trial(name=ORIGINAL, within=True)  # that is tried already
        name = f"{family.name}, {share:.1%}"
        return self._try(name, lambda output: family.build(share, output), share=share)

    def _try(
        self,
        name: str,
        build: Callable[[Path], None],
        *,
        rival: bool = False,
        share: float | None = None,
    ) -> Trial | None:
        """Build and measure, or look up; None after the time is up."""
        self._builders[name] = build
        trial = self._log.get(name)
        if trial is None:
            if time.monotonic() > self._deadline:
                self._notes.append(f"{name} was not tried: the time was up")
                return None
            trial = self._measure(name, rival=rival, share=share)
            if trial.problem is None:
                self._log.put(trial)
        within = trial.drop is not None and trial.drop.value <= self._spec.max_drop
        self._trials[name] = trial.model_copy(update={"within": within})
        return self._trials[name]

    def _measure(self, name: str, *, rival: bool, share: float | None) -> Trial:
        try:
            path = self._path(name)
            drop = self._drop(path, self._choosing)
            size_bytes = model_size(path, path).candidate_bytes
        except CompressOnnxError as problem:
            return Trial(name=name, rival=rival, share=share, problem=str(problem))
        return Trial(name=name, rival=rival, share=share, drop=drop, size_bytes=size_bytes)

    def _path(self, name: str) -> Path:
        """The file of a candidate, built where it is not there yet."""
        if name == ORIGINAL:
            return self._learned.original.path
        path = self._folder / str(list(self._builders).index(name)) / "model.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with self._learned.settings.progress.step(f"build {name}"):
                self._builders[name](path)
        return path

    def _drop(self, model: Path, samples: Samples) -> Drop:
        settings = self._learned.settings
        report = validate(
            self._learned.original.path,
            model,
            samples,
            metric=self._metric,
            spec=settings.session,
            batch_size=settings.batch_size,
        )
        return drop_of(report)

    def _finalists(self) -> list[Trial]:
        """The original, all rivals, and of each family the smallest within the drop."""
        original = Trial(
            name=ORIGINAL,
            rival=True,
            within=True,
            drop=None,
            size_bytes=model_size(*[self._learned.original.path] * 2).candidate_bytes,
        )
        self._trials = {ORIGINAL: original, **self._trials}
        families: dict[str, Trial] = {}
        for name, trial in self._trials.items():
            family = name.rpartition(", ")[0]
            known = families.get(family)
            if not trial.rival and trial.within and (known is None or _smaller(trial, known)):
                families[family] = trial
        rivals = [t for t in self._trials.values() if t.rival and t.problem is None]
        return [*rivals, *families.values()]

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        """``trials`` with their speed over the original, all interleaved, and batch invariance."""
        times = self._interleaved([self._path(trial.name) for trial in trials])
        rng = np.random.default_rng(self._learned.settings.seed)
        found = []
        for index, trial in enumerate(trials):
            pair = times[:, [0, index]]
            low, high = speedup_interval(pair, rng)
            changed = {
                "speedup": speedup(pair),
                "speedup_low": low,
                "speedup_high": high,
                "batch_invariance": self._invariance(self._path(trial.name)),
            }
            found.append(trial.model_copy(update=changed))
        self._trials |= {trial.name: trial for trial in found}
        return found

    def _invariance(self, path: Path) -> float | None:
        """The batch invariance of a model; None where it cannot be measured, which a note says."""
        try:
            return batch_invariance(path, self._choosing, self._learned.settings.session)
        except DataError as error:
            if str(error) not in self._notes:
                self._notes.append(str(error))
            return None

    def _interleaved(self, paths: Sequence[Path]) -> Times:
        """Nanoseconds ``[rounds, models]``."""
        benchmark, settings = self._spec.benchmark, self._learned.settings
        models = [BoundModel(path, self._feeds, self._session) for path in paths]
        rng = np.random.default_rng(settings.seed)
        with settings.progress.step("time", benchmark.iterations) as update:
            interleave(models, benchmark.warmup, rng)
            return interleave(models, benchmark.iterations, rng, progress=update)

    @property
    def _session(self) -> SessionSpec:
        benchmark = self._spec.benchmark
        return SessionSpec(provider=benchmark.device, threads=benchmark.threads)

    @property
    def _feeds(self) -> dict[str, Array]:
        return benchmark_feeds(
            self._learned.original.path,
            self._spec.benchmark,
            samples=self._learned.samples,
            seed=self._learned.settings.seed,
        )

    @property
    def _inputs(self) -> str:
        shapes = (f"{n} {'x'.join(map(str, a.shape)) or 'scalar'}" for n, a in self._feeds.items())
        return ", ".join(shapes)

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        within = [trial for trial in trials if trial.within]
        if self._spec.objective == "size":
            return min(within, key=lambda trial: trial.size_bytes or 0, default=None)
        return max(within, key=lambda trial: trial.speedup or 0, default=None)

    def _gain(self, ours: Trial, other: Trial) -> float:
        """How many times as good ``ours`` is."""
        if self._spec.objective == "size":
            return (other.size_bytes or 0) / (ours.size_bytes or 1)
        return (ours.speedup or 0) / (other.speedup or 1)

    def _reported(self, trial: Trial) -> Trial:
        if trial.name == ORIGINAL:
            return trial
        drop = self._drop(self._path(trial.name), self._reporting)
        return trial.model_copy(update={"reported": drop})

    def _verdict(self, winner: Trial, best: Trial | None, fallback: Trial) -> str:
        """What won, by how much, over what; and that ours did not, where it did not."""
        what = "fast" if self._spec.objective == "latency" else "small"
        at = f" at {self._inputs}" if self._spec.objective == "latency" else ""
        if winner.name != fallback.name:
            lost = ""
            if (drop := winner.reported) is not None:
                lost = (
                    f"; on samples that chose nothing it loses {drop.value:.3g} ({drop.quantity})"
                )
            return (
                f"{winner.name} is {self._gain(winner, fallback):.2f} times as {what} as "
                f"{fallback.name}, the best that there is without it{at}{lost}"
            )
        if best is None:
            return f"nothing of ours stays within {self._spec.max_drop:g}: {fallback.name} it is"
        return (
            f"{fallback.name} it is: {best.name}, the best of ours within "
            f"{self._spec.max_drop:g}, is {self._gain(best, fallback):.2f} times as {what}{at}, "
            f"and less than {LEAST_GAIN} is not worth it"
        )

    def _key_of_all(self) -> str:
        """All that decides what a trial comes to, but its name."""
        assert self._learned.samples is not None
        settings = self._learned.settings
        return content_key(
            _FORMAT,
            self._learned.original.digest,
            f"{settings.batch_size} {settings.seed} {self._spec.limit}",
            f"{self._learned.samples.mask_name} {self._choosing.mask_name}",
            "" if self._metric is None else self._metric.model_dump_json(),
            self._learned.samples.inputs,
            self._choosing.inputs,
            {} if self._choosing.labels is None else {"labels": self._choosing.labels},
        )


def _smaller(one: Trial, other: Trial) -> bool:
    return (one.size_bytes or 0) < (other.size_bytes or 0)
