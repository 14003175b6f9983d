"""The smallest, fastest model within a drop: forms and rivals measured side by side.

Of each family of forms (:mod:`~pipeline.compress.forms`) the smallest share within the drop is
looked for, on one half of the held-out samples (:mod:`~pipeline.compress.share_search`). Then as
many candidates as there is room for run against the rivals (:mod:`~pipeline.compress.rivals`),
interleaved, at each shape that the benchmark names; the other half reports.

Where recovery is asked for, shares of the smallest families that lose somewhat more than may be
lost are trained, and stand beside the others.

On the CPU, ONNX Runtime is kept from a fusion that costs more than it saves
(:mod:`graph_passes.rewriting.unfused_norms`), where the original is faster without it.

Rules:

1. A rival wins unless ours is worth it (:mod:`~pipeline.compress.choice`). Where answers may not
   depend on the batch, what does so cannot win.
2. What chooses never reports.
3. Trials are logged, by all that decides their outcome, what they are timed on included, as forms
   are chosen by time too: a second call measures none again, but for the speed of the rivals and of
   the best of each family.
4. No trial starts after the time is up, but the first of ours; what was found until then counts.
5. Accuracy, batch invariance and time are those of the provider that the model is for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import CompressOnnxError, DataError, RequestError
from compress_onnx.graph_passes.rewriting.unfused_norms import UnfuseNormsPass
from compress_onnx.pipeline.compress.choice import LEAST_GAIN, Choice, Race, with_front
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.form_times import Make, Speed
from compress_onnx.pipeline.compress.forms import Family, Forms
from compress_onnx.pipeline.compress.learn import Learned
from compress_onnx.pipeline.compress.rivals import rivals
from compress_onnx.pipeline.compress.search import drop_of, halves
from compress_onnx.pipeline.compress.share_search import STEPS, ShareSearch
from compress_onnx.pipeline.compress.trial_log import TrialLog
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.model_file import model_size, save_model
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.measure.benchmark import (
    BoundModel,
    Times,
    interleave,
    speedup,
)
from compress_onnx.pipeline.measure.kernel_times import layer_times_ms
from compress_onnx.pipeline.measure.latency import cases_of, feeds_by_shape, shapes_of
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import BenchmarkSpec, MetricSpec, OptimizeSpec, RecoverySpec
from compress_onnx.pipeline.recover.recover import Lessons
from compress_onnx.pipeline.results import Drop, OptimizeReport, Trial
from compress_onnx.pipeline.runtime.processor import processor_name
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, require_provider

MOST = 16
"""How many models run in turn, rivals and the best of each family included."""

MOST_BYTES = 2_000_000_000
"""How large those beyond these may be together."""

RECOVERED = 2
"""How many candidates are trained."""

RECOVERABLE = 1.25
"""How many times the drop that is allowed they lose before."""

REACH = 2.0
"""Up to how many times the drop that is allowed a trial is still timed, for the front."""

ORIGINAL = "original"
UNFUSED = "original, sums and norms apart"
_FORMAT = "trial 4"
_TIMED = "timed: "

Build = Callable[[Path], Compressed | None]
"""Writes a model; returns the plan and what it stands on, None where there is no plan."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """What was found, and the samples that chose nothing.

    Attributes:
        report: all trials, and the verdict.
        compressed: the plan of the winner, and what it stands on; None where it has no plan.
        reporting: the half of the held-out samples that reports.
    """

    report: OptimizeReport
    compressed: Compressed | None
    reporting: Samples


def optimize(
    learned: Learned,
    held_out: Samples,
    output: Path,
    spec: OptimizeSpec | None = None,
    *,
    benchmark: BenchmarkSpec | None = None,
    metric: MetricSpec | None = None,
    log: Path | None = None,
    recovery: RecoverySpec | None = None,
    lessons: Lessons | None = None,
    domains: Mapping[str, Samples] | None = None,
) -> Optimum:
    """Find the best model within the drop, and write it to ``output``.

    Args:
        learned: the model, from calibration data; its settings say who is told of trials.
        held_out: samples that calibration never saw.
        output: the ``.onnx`` file; replaced in one step.
        spec: what is wanted.
        benchmark: the sizes of inferences, each of which counts alike, and how they are run.
        metric: of the drop; None compares raw outputs.
        log: a file of trials, read and added to; None keeps none.
        recovery: how candidates are trained; None trains none.
        lessons: what they are trained on; None takes the calibration data.
        domains: further samples, by name, on which finalists are told; they decide nothing.

    Raises:
        RequestError: nothing was learned from samples, or the log is not one.
        ProviderError: the provider does not work here.
        DataError: there are too few samples to cut them in halves, or they do not fit.
        OutputError: ``output`` cannot be written.
    """
    if learned.samples is None:
        raise RequestError("optimize needs calibration data: forms are chosen by it")
    spec, benchmark = spec or OptimizeSpec(), benchmark or BenchmarkSpec()
    require_provider(benchmark.device)
    with (
        TemporaryDirectory(prefix="compress-onnx-") as folder,
        learned.settings.progress.step("optimize"),
    ):
        forms = Forms(
            learned,
            spec,
            benchmark.device,
            recovery=recovery,
            lessons=lessons,
        )
        search = _Search(
            forms, held_out, benchmark, metric=metric, folder=Path(folder), domains=domains or {}
        )
        return search.run(output, log)


class _Search:
    """One call of :func:`optimize`."""

    def __init__(
        self,
        forms: Forms,
        held_out: Samples,
        benchmark: BenchmarkSpec,
        *,
        metric: MetricSpec | None,
        folder: Path,
        domains: Mapping[str, Samples] = MappingProxyType({}),
    ) -> None:
        self._learned, self._spec, self._benchmark = forms.learned, forms.spec, benchmark
        self._metric, self._folder, self._domains = metric, folder, domains
        self._forms = replace(forms, speedups=self._speedups)
        self._reporting, self._choosing = halves(held_out)
        self._log = TrialLog(None, "")
        self._deadline = time.monotonic() + forms.spec.time
        self._builders: dict[str, Build] = {}
        self._plans: dict[str, Compressed | None] = {}
        self._trials: dict[str, Trial] = {}
        self._untried: list[str] = []
        self._unmeasured: str | None = None
        self._invariances: dict[str, float | None] = {}
        self._priced = False
        self._loss_per_damage: float | None = None
        self._searches: dict[str, ShareSearch] = {}

    def run(self, output: Path, log: Path | None) -> Optimum:
        """Try, choose, write, report."""
        self._log = TrialLog(log, self._key_of_all())
        original = self._learned.original
        for name, write in rivals(self._session.provider).items():
            self._try(Trial(name=name, rival=True), partial(_written, write, original.path))
        if self._gains_by_unfusing():
            self._forms = replace(self._forms, unfused=True)
            self._try(
                Trial(name=UNFUSED, rival=True),
                lambda path: self._forms.save(original.copy(), path),
            )
        for index, family in enumerate(self._forms.families()):
            self._search(family, at_least_one=index == 0)
        self._recover()
        finalists = self._finalists()
        others = list(self._others(finalists))
        race = self._race([*finalists, *others])
        for trial in race.trials[len(finalists) :]:
            self._log.put(trial)
        choice = self._choose(race)
        winner = choice.winner
        if winner.name == ORIGINAL:
            save_model(original.copy(), output)
        else:
            save_model(ir.load(self._path(winner.name)), output)
        timed = {trial.name: trial for trial in race.trials}
        reported = dict.fromkeys([*(trial.name for trial in finalists), winner.name])
        told = {name: self._told(timed[name]) for name in reported}
        trials = [told.get(n) or timed.get(n) or trial for n, trial in self._trials.items()]
        compressed = self._compressed(winner.name)
        report = OptimizeReport(
            max_drop=self._spec.max_drop,
            objective=self._spec.objective,
            provider=self._session.provider,
            inputs=self._inputs,
            trials=with_front(trials, self._spec),
            winner=winner.name,
            verdict=choice.verdict(told[winner.name], self._inputs, trials),
            chosen_on=f"{len(self._choosing)} samples of {self._choosing.origin}",
            reported_on=f"{len(self._reporting)} samples of {self._reporting.origin}",
            plan=None if compressed is None else compressed.plan,
            notes=self._notes,
        )
        return Optimum(report, compressed, self._reporting)

    def _compressed(self, name: str) -> Compressed | None:
        """The plan of a trial with the times of its layers; None where it has none."""
        compressed = self._plans.get(name)
        if compressed is None or not compressed.plan.layers:
            return compressed
        layers = compressed.plan.layers
        nodes = [layer.node for layer in layers]
        feeds = next(iter(self._feeds.values()))
        times_ms = layer_times_ms(self._path(name), feeds, self._session, nodes)
        timed = [x.model_copy(update={"time_ms": times_ms.get(x.node)}) for x in layers]
        plan = compressed.plan.model_copy(update={"layers": tuple(timed)})
        return replace(compressed, plan=plan)

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

    def _search(self, family: Family, *, at_least_one: bool = False) -> None:
        """Try shares of ``family`` until the smallest within the drop is known, or nearly so."""
        whole = self._try_share(family, 1.0, in_any_case=at_least_one)
        if whole is None or not whole.within:
            return
        unavoidable = 0.0 if whole.drop is None else whole.drop.value
        search = ShareSearch(self._spec.max_drop, unavoidable, family.damage, self._loss_per_damage)
        self._searches[family.name] = search
        while (share := search.next()) is not None:
            if self._told_of(search, family, share) is None:
                return
        self._loss_per_damage = search.loss_per_damage

    def _told_of(self, search: ShareSearch, family: Family, share: float) -> Trial | None:
        """The trial of a share; ``search`` knows of it then."""
        trial = self._try_share(family, share)
        if trial is not None:
            # A share that cannot be built counts as one that loses everything.
            drop = math.inf if trial.drop is None else trial.drop.value
            search.tell(share, drop, within=trial.within)
        return trial

    def _recover(self) -> None:
        """Train shares beyond the drop, of the families where the smallest within are smallest."""
        families = {f.name: f for f in self._forms.families() if f.recover is not None}
        smallest: dict[str, Trial] = {}
        for trial in self._trials.values():
            name = trial.family
            if name in families and name in self._searches and trial.within:
                known = smallest.get(name)
                if known is None or _smaller(trial, known):
                    smallest[name] = trial
        ordered = sorted(smallest.values(), key=lambda trial: trial.size_bytes or 0)
        beyond = (self._beyond(families[within.family or ""]) for within in ordered)
        for trial in islice(filter(None, beyond), RECOVERED):
            family, share = families[trial.family or ""], trial.share or 0
            assert family.recover is not None
            name = f"{trial.name}, {self._recovered}"
            asked = Trial(name=name, family=family.name, share=share)
            self._try(asked, partial(family.recover, share))

    def _beyond(self, family: Family) -> Trial | None:
        """A share of ``family`` that loses somewhat more than may be lost."""
        search = self._searches[family.name]
        for _ in range(STEPS):
            share = search.beyond(RECOVERABLE)
            trial = None if share is None else self._told_of(search, family, share)
            if trial is None or not trial.within:
                break
        found = [
            trial
            for trial in self._trials.values()
            if trial.family == family.name and trial.drop is not None and not trial.within
        ]
        return min(found, key=self._distance, default=None)

    def _distance(self, trial: Trial) -> float:
        """How far the drop is from what recovery may make up for."""
        assert trial.drop is not None
        return abs(trial.drop.value - RECOVERABLE * self._spec.max_drop)

    @property
    def _recovered(self) -> str:
        """How much candidates are trained, in words."""
        recovery = self._forms.recovery
        assert recovery is not None
        steps = "" if recovery.steps is None else f"{recovery.steps} steps"
        seconds = "" if recovery.budget is None else f"{recovery.budget:g} s"
        return f"recovered for {' or '.join(filter(None, [seconds, steps]))}"

    def _try_share(
        self, family: Family, share: float, *, in_any_case: bool = False
    ) -> Trial | None:
        if share == 1 and family.numbers == "floats":
            return Trial(name=ORIGINAL, within=True)  # that is tried already
        trial = Trial(name=family.named(share), family=family.name, share=share)
        return self._try(trial, partial(family.build, share), in_any_case=in_any_case)

    def _try(self, asked: Trial, build: Build, *, in_any_case: bool = False) -> Trial | None:
        """Build and measure, or look up; None after the time is up, unless ``in_any_case``."""
        name = asked.name
        if name in self._trials:
            return self._trials[name]
        self._builders[name] = build
        trial = self._log.get(name)
        if trial is None:
            if time.monotonic() > self._deadline and not in_any_case:
                self._untried.append(name)
                return None
            trial = self._measured(asked)
            if trial.problem is None:
                self._log.put(trial)
        within = trial.drop is not None and trial.drop.value <= self._spec.max_drop
        changes: dict[str, object] = {"within": within}
        if trial.timed_at != self._timed_at:
            changes |= dict.fromkeys(("speedup", "speedup_low", "speedup_high"))
            changes |= {"speedup_at": {}}
        self._trials[name] = trial.model_copy(update=changes)
        self._learned.settings.on_trial(self._trials[name])
        return self._trials[name]

    def _measured(self, trial: Trial) -> Trial:
        try:
            path = self._path(trial.name)
            drop = self._drop(path, self._choosing)
            size_bytes = model_size(path, path).candidate_bytes
        except CompressOnnxError as problem:
            return trial.model_copy(update={"problem": str(problem)})
        return trial.model_copy(update={"drop": drop, "size_bytes": size_bytes})

    def _path(self, name: str) -> Path:
        """The file of a candidate, built where it is not there yet."""
        if name == ORIGINAL:
            return self._learned.original.path
        path = self._folder / str(list(self._builders).index(name)) / "model.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with self._learned.settings.progress.step(f"build {name}"):
                self._plans[name] = self._builders[name](path)
        return path

    def _drop(self, model: Path, samples: Samples) -> Drop:
        settings = self._learned.settings
        with settings.progress.step("validate", len(samples)) as update:
            report = validate(
                self._learned.original.path,
                model,
                samples,
                metric=self._metric,
                spec=self._forms.numbers.session,
                batch_size=settings.batch_size,
                progress=update,
            )
        return drop_of(report)

    def _finalists(self) -> list[Trial]:
        """The original, all rivals, and of each family the smallest within the drop."""
        drops = [trial.drop for trial in self._trials.values() if trial.drop is not None]
        path = self._learned.original.path
        original = Trial(
            name=ORIGINAL,
            rival=True,
            within=True,
            drop=Drop(quantity=drops[0].quantity, value=0.0) if drops else None,
            size_bytes=model_size(path, path).candidate_bytes,
        )
        self._trials = {ORIGINAL: original, **self._trials}
        families: dict[str | None, Trial] = {}
        for trial in self._trials.values():
            known = families.get(trial.family)
            if not trial.rival and trial.within and (known is None or _smaller(trial, known)):
                families[trial.family] = trial
        rivals = [t for t in self._trials.values() if t.rival and t.problem is None]
        return [*rivals, *families.values()]

    def _others(self, finalists: Sequence[Trial]) -> Iterator[Trial]:
        """What else is within reach, as far as there is time and room; the best ones first."""
        taken = {trial.name for trial in finalists}
        size = self._spec.model_copy(update={"objective": "size"})
        found = [
            trial
            for trial in with_front(self._trials.values(), size)
            if trial.name not in taken
            and trial.speedup is None
            and trial.drop is not None
            and trial.drop.value <= REACH * self._spec.max_drop
        ]
        found.sort(key=lambda trial: (not trial.on_front, trial.size_bytes))
        room = MOST_BYTES
        for trial in found[: max(MOST - len(finalists), 0)]:
            room -= trial.size_bytes or 0
            if room < 0 or time.monotonic() > self._deadline:
                return
            self._path(trial.name)
            yield trial

    def _race(self, trials: Sequence[Trial]) -> Race:
        """``trials`` with their speed over the first, the original, all interleaved."""
        times = self._interleaved([self._path(trial.name) for trial in trials])
        seed, shapes = self._learned.settings.seed, tuple(self._feeds)
        race = Race(trials, times, self._spec, seed=seed, shapes=shapes)
        return race.with_speeds(self._timed_at)

    def _speedups(self, makes: Mapping[str, Make]) -> dict[str, Speed]:
        """The speed of each model over the first; logged, as forms are chosen by it."""
        self._priced = True
        trials = [self._log.get(f"{_TIMED}{name}") for name in makes]
        known = [trial for trial in trials if trial is not None]
        if len(known) < len(makes):
            with TemporaryDirectory(dir=self._folder) as folder:
                paths = []
                for name, make in makes.items():
                    paths.append(Path(folder) / name / "model.onnx")
                    paths[-1].parent.mkdir()
                    self._forms.save(make(), paths[-1])
                times = self._interleaved(paths)
            untimed = [Trial(name=f"{_TIMED}{name}") for name in makes]
            race = Race(untimed, times, self._spec, shapes=tuple(self._feeds))
            known = list(race.with_speeds(self._timed_at).trials)
            for trial in known:
                self._log.put(trial)
        return {
            name: Speed(trial.speedup or 1, trial.speedup_low or 1, trial.speedup_high or 1)
            for name, trial in zip(makes, known, strict=True)
        }

    def _choose(self, race: Race) -> Choice:
        """The best of both sides, of those that depend on the batch no more than is allowed."""
        choice, least = race.choose(), self._spec.batch_invariance
        while least is not None:
            both = [trial.name for trial in (choice.best, choice.fallback) if trial is not None]
            found = {name: self._invariance(name) for name in both if name != ORIGINAL}
            unstable = {n: c for n, c in found.items() if c is not None and c < least}
            if not unstable:
                break
            race = replace(race, unstable={**race.unstable, **unstable})
            choice = race.choose()
        return choice

    def _invariance(self, name: str) -> float | None:
        """The batch invariance of a trial; None where it cannot be measured, which a note says."""
        if name not in self._invariances:
            session = self._forms.numbers.session
            try:
                found = batch_invariance(self._path(name), self._choosing, session)
            except DataError as error:
                self._unmeasured, found = str(error), None
            self._invariances[name] = found
        return self._invariances[name]

    def _interleaved(self, paths: Sequence[Path]) -> Times:
        """Nanoseconds ``[shapes, rounds, models]``; within a shape, the models take turns."""
        benchmark, settings = self._benchmark, self._learned.settings
        first = next(iter(self._feeds.values()))
        models = [BoundModel(path, first, self._session) for path in paths]
        rng = np.random.default_rng(settings.seed)
        times = []
        for name, feeds in self._feeds.items():
            for model in models:
                model.bind(feeds)
            with settings.progress.step(f"time {name}".rstrip(), benchmark.iterations) as update:
                interleave(models, benchmark.warmup, rng)
                times.append(interleave(models, benchmark.iterations, rng, progress=update))
        return np.stack(times)

    @property
    def _session(self) -> SessionSpec:
        return SessionSpec(provider=self._forms.provider, threads=self._benchmark.threads)

    @cached_property
    def _feeds(self) -> dict[str, dict[str, Array]]:
        """The inputs of each shape, by its name."""
        return feeds_by_shape(
            self._learned.original.path,
            self._benchmark,
            samples=self._learned.samples,
            seed=self._learned.settings.seed,
        )

    @property
    def _inputs(self) -> str:
        named = self._feeds.items()
        return "; ".join(": ".join(filter(None, [n, shapes_of(feeds)])) for n, feeds in named)

    @property
    def _timed_at(self) -> str:
        where = f"{self._session.provider}, {self._session.thread_count} threads"
        return f"{processor_name()}, {where}, {self._inputs}"

    @property
    def _notes(self) -> tuple[str, ...]:
        untried = f"not tried, as the time was up: {'; '.join(self._untried)}"
        asked, differ = len(cases_of(self._benchmark)), len(self._feeds)
        alike = f"of {asked} sizes of inputs {differ} differ: the model or its data fix the others"
        notes = [
            untried if self._untried else None,
            self._unmeasured,
            alike if differ < asked else None,
            str(self._forms.numbers.times or "") if self._priced else None,
        ]
        return tuple(filter(None, notes))

    def _told(self, trial: Trial) -> Trial:
        """A finalist with its drop on what chose nothing, and its batch invariance."""
        path = self._path(trial.name)
        changes: dict[str, object] = {"batch_invariance": self._invariance(trial.name)}
        if trial.name != ORIGINAL:
            changes["reported"] = self._drop(path, self._reporting)
            changes["domains"] = {n: self._drop(path, s) for n, s in self._domains.items()}
        return trial.model_copy(update=changes)

    def _key_of_all(self) -> str:
        """All that decides what a trial comes to, but its name."""
        assert self._learned.samples is not None
        settings, shrinkage = self._learned.settings, self._spec.shrinkage
        return content_key(
            f"{_FORMAT} {version('compress-onnx')}",
            self._learned.original.digest,
            f"{settings.batch_size} {settings.seed} {self._forms.numbers.limit} {self._timed_at}"
            f"{'' if shrinkage is None else f' {shrinkage}'}",
            f"{self._learned.samples.mask_name} {self._choosing.mask_name}",
            "" if self._metric is None else self._metric.model_dump_json(),
            self._learned.samples.inputs,
            self._choosing.inputs,
            {} if self._choosing.labels is None else {"labels": self._choosing.labels},
            _other_settings(self._forms.recovery),
            *(() if self._forms.lessons is None else self._forms.lessons.inputs),
            *([each.inputs for each in self._learned.broader.values()] if shrinkage else []),
        )


def _other_settings(recovery: RecoverySpec | None) -> str:
    """What the names of trained candidates do not say."""
    said = {"budget", "steps"}
    spec = recovery or RecoverySpec()
    return spec.model_dump_json(exclude=said, exclude_defaults=True)


def _written(write: Callable[[Path, Path], None], model: Path, output: Path) -> None:
    write(model, output)


def _smaller(one: Trial, other: Trial) -> bool:
    return (one.size_bytes or 0) < (other.size_bytes or 0)
