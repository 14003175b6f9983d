"""A recipe made ready: the exported model, its data and calibration, and the steps on top of them.

What a single run does once and a sweep does for every variant (compress, validate, benchmark) are
methods; what both do only once (export, load data, calibrate) happens in :func:`prepare`, or for a
model and data that need no recipe in :func:`of_file`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.planning.strategy import concrete
from compress_onnx.pipeline.compress.meter import Meter
from compress_onnx.pipeline.compress.siblings import rejoin, share_siblings
from compress_onnx.pipeline.compress.study import Researcher, Study, plan_study
from compress_onnx.pipeline.compress.subject import (
    Subject,
    calibrate_subject,
    open_subject,
    spectra_of,
    write_compressed,
)
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.evidence.calibrate import Calibration
from compress_onnx.pipeline.export import ExportedModel, export
from compress_onnx.pipeline.export.onnx_file import use_onnx_file
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.measure.latency import measure_latency
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import (
    DataSpec,
    EmbeddingMetric,
    MetricSpec,
    Recipe,
    SourceSpec,
    TranslationMetric,
)
from compress_onnx.pipeline.recover.recover import check_trainable, recover_file, recovery_step
from compress_onnx.pipeline.report.pictures import SiteSpectrum
from compress_onnx.pipeline.results import Benchmark, RecoveryReport, ValidationReport
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.progress import Progress, Silent
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec


@dataclass
class Stopwatch:
    """Seconds by step; a step that runs again adds up."""

    timings_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Time the body as ``step``."""
        start = time.perf_counter()
        yield
        elapsed_s = self.timings_s.get(step, 0.0) + time.perf_counter() - start
        self.timings_s[step] = round(elapsed_s, 3)


@dataclass(frozen=True)
class Experiment:
    """A recipe with everything in place to compress its model.

    Attributes:
        recipe: what to do.
        exported: the reference model and what belongs to it.
        held_out: validation data, which calibration never saw; None without.
        samples: calibration data; None without.
        training: what recovery trains on; the calibration data unless the recipe says other.
        calibration: their activation statistics.
        meter: finds out what weights take of a budget of FLOPs or latency.
        cache: where gradients and training are kept between runs; None computes afresh.
        progress: shows the steps.
        watch: times them.
    """

    recipe: Recipe
    exported: ExportedModel
    held_out: Samples | None
    samples: Samples | None
    training: Samples | None
    calibration: Calibration | None
    meter: Meter
    cache: ArrayCache | None
    progress: Progress
    watch: Stopwatch

    @property
    def reference(self) -> Path:
        """The model as exported."""
        return self.exported.path

    @property
    def session(self) -> SessionSpec:
        """How models run for calibration and validation."""
        return session_spec(self.recipe)

    def calibrated(self) -> Experiment:
        """The experiment with the activation statistics of its samples, where there are any."""
        if self.samples is None:
            return self
        with self.watch.measure("calibrate"):
            calibration = calibrate_subject(
                open_subject(self.reference),
                self.samples,
                spec=self.session,
                batch_size=self.recipe.batch_size,
                cache=self.cache,
                progress=self.progress,
            )
        return replace(self, calibration=calibration)

    def spectra(self, plan: CompressionPlan) -> list[SiteSpectrum]:
        """The spectra of the sites that ``plan`` selects, with what it chose for them."""
        with self.watch.measure("spectra"):
            subject = open_subject(self.reference)
            known = rejoin(subject, Study(self.recipe.compression, self.calibration), plan)
            return spectra_of(subject, plan, known.calibration, self.progress)

    def compress(self, request: CompressionSpec, candidate: Path) -> CompressionPlan:
        """Compress the reference as ``request`` says and write it to ``candidate``.

        Raises:
            RequestError: the request makes no sense for this model.
            NothingToCompressError: no weight can be factored with a gain.
        """
        with self.watch.measure("compress"):
            subject, request = open_subject(self.reference), requested(request, self.recipe.metric)
            researcher = self._researcher(subject)
            study = researcher.study(request) if researcher else Study(concrete(request, "none"))
            study = share_siblings(subject, study)
            plan = plan_study(subject, study, self.meter)
            return write_compressed(
                subject,
                plan,
                study.calibration,
                candidate,
                ready=researcher.factor(plan, study) if researcher else None,
                progress=self.progress,
            )

    def _researcher(self, subject: Subject) -> Researcher | None:
        if self.samples is None:
            return None
        return Researcher(
            subject,
            self.samples,
            known=self.calibration,
            spec=self.session,
            batch_size=self.recipe.batch_size,
            cache=self.cache,
            progress=self.progress,
        )

    def recover(self, candidate: Path) -> RecoveryReport | None:
        """Train ``candidate`` in its file as the recipe says; None where it says nothing.

        Raises:
            RequestError: the model cannot be trained.
        """
        if self.recipe.recovery is None:
            return None
        assert self.training is not None  # see prepare
        with self.watch.measure("recover"), recovery_step(self.progress) as update:
            return recover_file(
                self.reference,
                candidate,
                self.training,
                self.recipe.recovery,
                seed=self.recipe.seed,
                spec=self.session,
                batch_size=self.recipe.batch_size,
                checkpoints=self.cache,
                progress=update,
            )

    def validate(self, candidate: Path) -> ValidationReport | None:
        """Hold ``candidate`` against the reference; None without validation data."""
        if self.held_out is None:
            return None
        with (
            self.watch.measure("validate"),
            self.progress.step("validate", len(self.held_out)) as update,
        ):
            return validate(
                self.reference,
                candidate,
                self.held_out,
                metric=self.recipe.metric,
                spec=self.session,
                batch_size=self.recipe.batch_size,
                progress=update,
            )

    def benchmark(
        self, candidate: Path, plan: CompressionPlan
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
                progress=self.progress,
            )


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    base_dir: Path,
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> Experiment:
    """Export the model of ``recipe``, load its data, and calibrate.

    Args:
        recipe: what to prepare.
        folder: an empty folder for the exported model.
        base_dir: what relative paths in the recipe are relative to.
        cache: where calibration is kept between runs; None computes afresh.
        progress: shows the steps.

    Raises:
        RequestError: the recipe contradicts itself.
        CompressOnnxError: the model or the data cannot be had.
    """
    if isinstance(recipe.metric, TranslationMetric):
        raise RequestError(
            f"recipe {recipe.name}: translation needs an encoder with a decoder, which only `run` "
            "and `sweep` can take"
        )
    if recipe.metric is not None and recipe.validation is None:
        raise RequestError(
            f"recipe {recipe.name}: a metric needs data to be measured on: add validation"
        )
    if recipe.recovery is not None and not (recipe.calibration or recipe.recovery.data):
        raise RequestError(
            f"recipe {recipe.name}: recovery needs data to train on: add calibration, or data to it"
        )
    if recipe.recovery is not None and recipe.compression.store != "same":
        raise RequestError(
            f"recipe {recipe.name}: recovery trains float32 factors, and the store "
            f"{recipe.compression.store} rounds them: drop one"
        )
    progress, watch = progress or Silent(), Stopwatch()
    with watch.measure("export"), progress.step("export"):
        exported = export(recipe.source, folder, base_dir=base_dir, seed=recipe.seed)
    if recipe.recovery is not None:
        check_trainable(exported.path)
    with watch.measure("load data"):
        held_out = _samples(recipe, recipe.validation, exported, base_dir)
        samples = _samples(recipe, recipe.calibration, exported, base_dir)
        lessons = recipe.recovery.data if recipe.recovery else None
        training = _samples(recipe, lessons, exported, base_dir) or samples
    meter = _meter(recipe, exported, held_out or samples, progress)
    experiment = Experiment(
        recipe, exported, held_out, samples, training, None, meter, cache, progress, watch
    )
    return experiment.calibrated()


def of_file(
    model: Path,
    samples: Samples | None,
    held_out: Samples,
    *,
    metric: MetricSpec | None = None,
    batch_size: int = 32,
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> Experiment:
    """Calibrate an ONNX file that comes without a recipe.

    Args:
        model: the ``.onnx`` file.
        samples: calibration data; None without.
        held_out: what is measured on.
        metric: as what; None compares raw outputs only.
        batch_size: samples at a time.
        cache: where calibration and gradients are kept; None computes afresh.
        progress: shows the steps.

    Raises:
        ModelFileError: the file is missing, damaged or unsafe.
        DataError: the samples do not fit the model.
    """
    source = SourceSpec(model=str(model), kind="onnx")
    recipe = Recipe(name="file", source=source, metric=metric, batch_size=batch_size)
    exported = use_onnx_file(model, str(model))
    progress, watch = progress or Silent(), Stopwatch()
    meter = _meter(recipe, exported, held_out, progress)
    experiment = Experiment(
        recipe, exported, held_out, samples, samples, None, meter, cache, progress, watch
    )
    return experiment.calibrated()


def _meter(
    recipe: Recipe, exported: ExportedModel, samples: Samples | None, progress: Progress
) -> Meter:
    return Meter(
        exported.path, recipe.benchmark, samples=samples, seed=recipe.seed, progress=progress
    )


def requested(request: CompressionSpec, metric: MetricSpec | None) -> CompressionSpec:
    """The request with the objective of the task's metric, unless it names one itself."""
    pooled = isinstance(metric, EmbeddingMetric) and metric.pooling == "mean"
    if request.objective is not None or not pooled:
        return request
    return request.model_copy(update={"objective": "pooled"})


def session_spec(recipe: Recipe) -> SessionSpec:
    """Sessions on the CPU with the recipe's number of threads."""
    return SessionSpec(threads=recipe.benchmark.threads if recipe.benchmark else None)


def _samples(
    recipe: Recipe, spec: DataSpec | None, exported: ExportedModel, base_dir: Path
) -> Samples | None:
    if spec is None:
        return None
    inputs = model_inputs(load_structure(exported.path))
    return load_samples(
        spec,
        base_dir=base_dir,
        tokenizer_dir=exported.tokenizer_dir,
        mask=recipe.mask,
        input_names=[model_input.name for model_input in inputs],
        seed=recipe.seed,
    )
