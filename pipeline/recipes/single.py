"""An experiment with a model of one graph.

What a run does once and a sweep for every variant (compress, recover, validate, benchmark) are
methods; what both do only once (export, load data, learn) happens in :func:`prepare_model`.

With ``max_drop`` or ``optimize``, one half of the validation data finds the share or the form, and
the other half reports: what chooses never reports.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.graph_passes.errors import NothingToCompressError, RequestError
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.basis import Basis
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.holdout import objective_of
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.optimize import optimize
from compress_onnx.pipeline.compress.search import smallest_within
from compress_onnx.pipeline.compress.spectra import SiteSpectrum, spectra_of
from compress_onnx.pipeline.compress.trial_log import is_trial_log
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.deploy.card import ORIGINAL_CARD_NAME
from compress_onnx.pipeline.deploy.package import (
    MODEL_NAME,
    PLAN_NAME,
    Serving,
    copy_file,
    place_model,
)
from compress_onnx.pipeline.deploy.targets import bundle_all
from compress_onnx.pipeline.divergence.depth import depth_profile
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.export import ExportedModel, export
from compress_onnx.pipeline.files.bundle import copy_assets
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.domains import by_set, with_domains
from compress_onnx.pipeline.measure.gates import (
    asks_for,
    check_gates,
    check_quantities,
    measured_quantities,
)
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.measure.latency import measure_latency
from compress_onnx.pipeline.measure.metrics.check import check_metric
from compress_onnx.pipeline.measure.providers import Requested
from compress_onnx.pipeline.measure.quantities import recipe_quantities
from compress_onnx.pipeline.measure.validate import validate, validate_on
from compress_onnx.pipeline.recipe import (
    DataSpec,
    MetricSpec,
    OptimizeSpec,
    Recipe,
    RecoverySpec,
)
from compress_onnx.pipeline.recover.recover import (
    Lessons,
    check_trainable,
    recover_file,
    recovery_step,
)
from compress_onnx.pipeline.report.drawing import why_no_pictures
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.report.page import why_no_charts
from compress_onnx.pipeline.report.writer import write_report
from compress_onnx.pipeline.results import (
    Benchmark,
    DepthProfile,
    OptimizeReport,
    RecoveryReport,
    RunReport,
    SearchReport,
    SweepRow,
    ValidationReport,
)
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import Provider, require_provider
from compress_onnx.pipeline.runtime.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Made:
    """How the candidate came about: its plan and what that stands on, and what was searched."""

    basis: Basis | None = None
    plan: CompressionPlan | None = None
    search: SearchReport | None = None
    optimize: OptimizeReport | None = None


@dataclass(frozen=True, eq=False)
class ModelExperiment:
    """A recipe with everything in place to compress its model.

    Attributes:
        recipe: what to do.
        exported: the reference model and what belongs to it.
        learned: all that is known about it, from the calibration data.
        held_out: validation data, which calibration never saw; None without.
        domains: further data to report on, by name.
        lessons: what recovery trains on; the calibration data unless the recipe says other.
        watch: times the steps.
    """

    recipe: Recipe
    exported: ExportedModel
    learned: Learned
    held_out: Samples | None
    domains: Mapping[str, Samples]
    lessons: Lessons | None
    watch: Stopwatch

    @property
    def reference(self) -> Path:
        """The model as exported."""
        return self.exported.path

    @property
    def settings(self) -> RunSettings:
        """How models run for calibration and validation."""
        return self.learned.settings

    def compress(self, request: CompressionSpec) -> Compressed:
        """Compress the reference as ``request`` says.

        Raises:
            RequestError: the request makes no sense for this model.
            NothingToCompressError: no weight can be factored with a gain.
        """
        with self.watch.measure("compress"):
            return self.learned.compress(requested(request, self.recipe.metric))

    def write(self, compressed: Compressed, candidate: Path) -> CompressionPlan:
        """Write the compressed model to ``candidate``; returns the plan with its errors."""
        with self.watch.measure("compress"):
            return compressed.write(candidate)

    def recover(self, candidate: Path) -> RecoveryReport | None:
        """Train ``candidate`` in its file as the recipe says; None where it says nothing.

        Raises:
            RequestError: the model cannot be trained.
        """
        if self.recipe.recovery is None:
            return None
        assert self.lessons is not None  # see prepare_model
        settings = self.settings
        with self.watch.measure("recover"), recovery_step(settings.progress) as update:
            return recover_file(
                self.reference,
                candidate,
                self.lessons,
                self.recipe.recovery,
                seed=settings.seed,
                spec=settings.session,
                batch_size=settings.batch_size,
                checkpoints=settings.cache and settings.cache.checkpoints,
                progress=update,
            )

    def validate(
        self, candidate: Path, *elsewhere: Requested, batch_invariance: bool = False
    ) -> ValidationReport | None:
        """Hold ``candidate`` against the reference; None without validation data.

        Args:
            candidate: the compressed model.
            elsewhere: providers to do the same on.
            batch_invariance: whether to measure it.
        """
        if self.held_out is None:
            return None
        samples, provider = self.held_out, self.settings.session.provider

        def measure(place: Provider) -> ValidationReport:
            require_provider(place)
            return self._compare(candidate, samples, place, batch_invariance=batch_invariance)

        with self.watch.measure("validate"):
            return validate_on([provider, *elsewhere], measure)

    def _with_domains(
        self, candidate: Path, validation: ValidationReport | None
    ) -> ValidationReport | None:
        """The same with ``candidate`` on each domain, on the first provider."""
        if validation is None or not self.domains:
            return validation
        provider = self.settings.session.provider
        with self.watch.measure("validate domains"):
            found = {
                name: self._compare(candidate, samples, provider)
                for name, samples in self.domains.items()
            }
        return with_domains(validation, found)

    def benchmark(
        self, candidate: Path, plan: CompressionPlan | None
    ) -> tuple[tuple[Benchmark, ...], dict[str, str]]:
        """Latencies, and a reason for each provider that was not measured."""
        settings = self.recipe.benchmark
        if settings is None:
            return (), {}
        with self.watch.measure("benchmark"):
            return measure_latency(
                self.reference,
                candidate,
                settings,
                samples=self.held_out,
                plan=plan,
                seed=self.recipe.seed,
                progress=self.settings.progress,
            )

    def fill(self, bundle: Path, heading: Heading) -> RunReport:
        """Compress, measure, and write everything but the manifest into ``bundle``.

        Raises:
            CompressOnnxError: it cannot be carried out.
        """
        if self.recipe.compression.optimize is not None:
            return self._optimized(bundle, heading, self.recipe.compression.optimize)
        if self.recipe.max_drop is None:
            compressed = self.compress(self.recipe.compression)
            return self._compressed(bundle, heading, compressed, None)
        assert self.held_out is not None  # see prepare_model
        found = smallest_within(
            self.learned,
            requested(self.recipe.compression, self.recipe.metric),
            self.recipe.max_drop,
            self.held_out,
            self.recipe.metric,
        )
        experiment = replace(self, held_out=found.reporting)
        return experiment._compressed(bundle, heading, found.compressed, found.report)

    def row(self, variant: CompressionSpec) -> SweepRow:
        """Compress in one way, and measure what came of it.

        Raises:
            RequestError: the variant makes no sense for this model.
        """
        # A folder a variant: data files are named after their content, and would pile up in one.
        with TemporaryDirectory(prefix="compress-onnx-") as folder:
            candidate = Path(folder) / MODEL_NAME
            try:
                compressed = self.compress(variant)
            except NothingToCompressError as error:
                return SweepRow(variant=variant, problem=str(error))
            plan = self.write(compressed, candidate)
            recovery = self.recover(candidate)
            validation = self._with_domains(candidate, self.validate(candidate))
            benchmarks, _ = self.benchmark(candidate, plan)
            ranks = [site.rank for site in plan.factored if site.rank is not None]
            return SweepRow(
                variant=variant.model_copy(update={"allocation": plan.allocation}),
                ranks=(min(ranks), max(ranks)) if ranks else None,
                error=plan.error,
                recovery=recovery,
                parameters_before=plan.parameters_before,
                parameters_after=plan.parameters_after,
                size=model_size(self.reference, candidate),
                metrics=validation.metrics if validation else {},
                by_set=by_set(validation) if validation else {},
                outputs=validation.outputs if validation else (),
                benchmarks=benchmarks,
            )

    def _compare(
        self,
        candidate: Path,
        samples: Samples,
        provider: Provider,
        *,
        batch_invariance: bool = False,
    ) -> ValidationReport:
        settings = self.settings
        with settings.progress.step(f"validate on {provider}", len(samples)) as update:
            return validate(
                self.reference,
                candidate,
                samples,
                metric=self.recipe.metric,
                spec=settings.session.model_copy(update={"provider": provider}),
                batch_size=settings.batch_size,
                batch_invariance=batch_invariance,
                progress=update,
            )

    def _compressed(
        self, bundle: Path, heading: Heading, compressed: Compressed, search: SearchReport | None
    ) -> RunReport:
        plan = self.write(compressed, bundle / MODEL_NAME)
        return self._report(bundle, heading, _Made(compressed.basis, plan, search=search))

    def _optimized(self, bundle: Path, heading: Heading, spec: OptimizeSpec) -> RunReport:
        assert self.held_out is not None  # see prepare_model
        with self.watch.measure("optimize"):
            found = optimize(
                self.learned,
                self.held_out,
                bundle / MODEL_NAME,
                spec,
                benchmark=self.recipe.benchmark,
                metric=self.recipe.metric,
                log=self._trial_log(),
                recovery=self.recipe.recovery,
                lessons=self.lessons,
            )
            made = _Made(optimize=found.report.model_copy(update={"plan": None}))
            if found.compressed is not None:
                basis, plan = found.compressed.basis, found.compressed.plan
                # Errors are those of factors and neurons: where all weights stay, there are none.
                plan = found.compressed.evaluated() if plan.changed else plan
                made = replace(made, basis=basis, plan=plan)
        return replace(self, held_out=found.reporting)._report(bundle, heading, made)

    def _trial_log(self) -> Path | None:
        """Where trials of this model are kept between runs; None without a cache."""
        if self.settings.cache is None:
            return None
        log = self.settings.cache.log(content_key("trials", self.learned.original.digest))
        if log.exists() and not is_trial_log(log):
            logger.warning("the log of trials %s is damaged and is begun anew", log)
            log.unlink()
        return log

    def _report(self, bundle: Path, heading: Heading, made: _Made) -> RunReport:
        candidate, plan = bundle / MODEL_NAME, made.plan
        recovery = self.recover(candidate) if made.optimize is None else None
        gates, timed = self.recipe.gates, self.recipe.benchmark
        validation = self.validate(
            candidate,
            *([timed.provider] if timed else []),
            batch_invariance=asks_for(gates, "batch_invariance"),
        )
        validation = self._with_domains(candidate, validation)
        # A plan says what factoring alone should bring: nothing about other forms.
        benchmarks, unmeasured = self.benchmark(candidate, None if made.optimize else plan)
        depth = self._depth(candidate)
        size = model_size(self.reference, candidate)
        calibration, session = self.learned.calibration, self.settings.session
        report = RunReport(
            **heading.fields(),
            command=heading.command,
            seed=self.recipe.seed,
            export=self.exported.report,
            calibration=calibration.origin if calibration else None,
            search=made.search,
            optimize=made.optimize,
            plan=plan,
            recovery=recovery,
            size=size,
            op_counts={
                "reference": executed_op_counts(self.reference, session),
                "candidate": executed_op_counts(candidate, session),
            },
            validation=validation,
            depth=depth,
            benchmarks=benchmarks,
            unmeasured=unmeasured,
            gates=check_gates(
                gates,
                measured_quantities(validation, benchmarks, size),
                {**(validation.unmeasured if validation else {}), **unmeasured},
            ),
            timings_s=self.watch.timings_s,
            notes=(*self._notes(made), *_not_profiled(depth)),
        )
        spectra: list[SiteSpectrum] = []
        if plan is not None and made.basis is not None:
            with self.watch.measure("spectra"):
                spectra = spectra_of(made.basis, plan, self.settings.progress)
            (bundle / PLAN_NAME).write_text(plan.model_dump_json(indent=2), encoding="utf-8")
        write_report(report, bundle, spectra, pictures=why_no_pictures() is None)
        _copy_beside(self.exported, bundle)
        _bundle_targets(self.recipe, bundle, self.reference)
        return report

    def _depth(self, candidate: Path) -> DepthProfile | None:
        """How far the values inside ``candidate`` are off; None without validation data."""
        if self.held_out is None:
            return None
        with self.watch.measure("depth profile"), self.settings.progress.step("depth profile"):
            return depth_profile(self.reference, candidate, self.held_out, self.settings.session)

    def _notes(self, made: _Made) -> Sequence[str]:
        calibration = self.learned.calibration
        learned = calibration.notes if calibration else ()
        chosen = made.plan.notes if made.plan else ()
        searched = made.optimize.notes if made.optimize else ()
        pictures = filter(None, [why_no_pictures(), why_no_charts()])
        return (*self.exported.notes, *learned, *searched, *chosen, *pictures)


def _not_profiled(depth: DepthProfile | None) -> Sequence[str]:
    if depth is None or depth.unmeasured is None:
        return ()
    return (f"no depth profile: {depth.unmeasured}",)


def prepare_model(
    recipe: Recipe, folder: Path, *, base_dir: Path, settings: RunSettings
) -> ModelExperiment:
    """Export the model of ``recipe``, load its data, and learn what compressing needs.

    Args:
        recipe: what to prepare.
        folder: an empty folder for the exported model.
        base_dir: what relative paths in the recipe are relative to.
        settings: how models run.

    Raises:
        RequestError: the recipe contradicts itself.
        CompressOnnxError: the model or the data cannot be had.
    """
    _check_consistent(recipe)
    watch = Stopwatch()
    with watch.measure("export"), settings.progress.step("export"):
        exported = export(
            recipe.source,
            folder,
            base_dir=base_dir,
            seed=recipe.seed,
            allow_code=settings.allow_code,
        )
    outputs = [value.name for value in load_structure(exported.path).graph.output]
    check_quantities(recipe.gates, recipe_quantities(recipe, outputs))
    _check_targets(recipe, exported)
    if recipe.recovery is not None:
        check_trainable(exported.path)
    with watch.measure("load data"):
        held_out = _samples(recipe, recipe.validation, exported, base_dir, settings.allow_code)
        domains = {
            name: _loaded(recipe, spec, exported, base_dir, settings.allow_code)
            for name, spec in recipe.domains.items()
        }
        broader = {
            name: _loaded(recipe, spec, exported, base_dir, settings.allow_code)
            for name, spec in recipe.broader.items()
        }
        samples = _samples(recipe, recipe.calibration, exported, base_dir, settings.allow_code)
        recovery = recipe.recovery or RecoverySpec()
        training = _samples(recipe, recovery.data, exported, base_dir, settings.allow_code)
        stopping = _samples(recipe, recovery.held_out, exported, base_dir, settings.allow_code)
        training = training or samples
        lessons = None if training is None else Lessons(training, stopping)
    if held_out is not None:
        check_metric(recipe.metric, outputs, held_out.labels is not None)
    for name, domain in domains.items():
        check_metric(recipe.metric, outputs, domain.labels is not None, f"domain {name}")
    with watch.measure("calibrate"):
        learned = learn(
            exported.path,
            samples,
            settings,
            benchmark=recipe.benchmark,
            priced_on=held_out or samples,
            broader=broader,
        )
    return ModelExperiment(recipe, exported, learned, held_out, domains, lessons, watch)


def requested(request: CompressionSpec, metric: MetricSpec | None) -> CompressionSpec:
    """The request with the objective of the task's metric, unless it names one itself."""
    if request.objective is not None or objective_of(metric) == "positions":
        return request
    return request.model_copy(update={"objective": objective_of(metric)})


def _check_consistent(recipe: Recipe) -> None:
    """Refuse what needs no run to be seen as wrong.

    Raises:
        RequestError: the recipe contradicts itself.
    """
    refusal = f"recipe {recipe.name}: "
    if recipe.metric is not None and recipe.validation is None:
        raise RequestError(f"{refusal}a metric needs data to be measured on: add validation")
    if recipe.max_drop is not None and recipe.validation is None:
        raise RequestError(f"{refusal}max_drop needs data to measure the drop on: add validation")
    if recipe.compression.optimize is not None:
        _check_optimize(recipe, refusal)
    if recipe.recovery is None:
        return
    if not (recipe.calibration or recipe.recovery.data):
        raise RequestError(
            f"{refusal}recovery needs data to train on: add calibration, or data to it"
        )
    if recipe.compression.store != "same":
        raise RequestError(
            f"{refusal}recovery trains float32 factors, and the store "
            f"{recipe.compression.store} rounds them: drop one"
        )


def _check_targets(recipe: Recipe, exported: ExportedModel) -> None:
    """Lay the original out for each target, so that what does not fit is told at once.

    Raises:
        CompressOnnxError: the model does not fit a target.
    """
    if not recipe.deploy:
        return
    with TemporaryDirectory(prefix="compress-onnx-") as place:
        folder = Path(place)
        place_model(exported.path, folder / MODEL_NAME)
        _copy_beside(exported, folder)
        _bundle_targets(recipe, folder, exported.path)


def _copy_beside(exported: ExportedModel, folder: Path) -> None:
    """What belongs to the model, and the card of what it was made from, which is not its own."""
    copy_assets(exported.assets, folder, exported.asset_root)
    if exported.card is not None:
        copy_file(exported.card, folder / ORIGINAL_CARD_NAME)


def _bundle_targets(recipe: Recipe, folder: Path, original: Path) -> None:
    threads = recipe.benchmark.threads if recipe.benchmark else None
    serving = Serving(threads=threads)
    bundle_all(recipe.deploy, folder, recipe.name, original=original, serving=serving)


def _check_optimize(recipe: Recipe, refusal: str) -> None:
    if recipe.max_drop is not None:
        raise RequestError(f"{refusal}max_drop is one of optimize: write it there")
    if recipe.calibration is None or recipe.validation is None:
        raise RequestError(
            f"{refusal}optimize chooses by data: add calibration, and validation to measure on"
        )


def _samples(
    recipe: Recipe,
    spec: DataSpec | None,
    exported: ExportedModel,
    base_dir: Path,
    allow_code: bool,
) -> Samples | None:
    return None if spec is None else _loaded(recipe, spec, exported, base_dir, allow_code)


def _loaded(
    recipe: Recipe, spec: DataSpec, exported: ExportedModel, base_dir: Path, allow_code: bool
) -> Samples:
    inputs = model_inputs(load_structure(exported.path))
    return load_samples(
        spec,
        base_dir=base_dir,
        tokenizer_dir=exported.tokenizer_dir,
        mask=recipe.mask,
        input_names=[model_input.name for model_input in inputs],
        seed=recipe.seed,
        allow_code=allow_code,
        declared=inputs,
    )
