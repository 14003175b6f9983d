"""The whole pipeline, as a recipe says.

    export -> calibrate -> plan -> rewrite -> validate -> benchmark -> gates -> report -> bundle

The bundle folder appears complete or not at all; a failed gate still leaves a bundle, whose report
says which gate failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from graph_passes.errors import RequestError
from graph_passes.plan import CompressionPlan
from pipeline.atomic import atomic_directory
from pipeline.bundle import copy_assets, is_bundle, write_manifest
from pipeline.cache import ArrayCache
from pipeline.calibrate import Calibration
from pipeline.compress import (
    apply_plan,
    calibrate_subject,
    open_subject,
    plan_subject,
    spectra_of,
)
from pipeline.data.samples import Samples
from pipeline.data.sources import load_samples
from pipeline.export import ExportedModel, export
from pipeline.gates import check_gates, measured_quantities
from pipeline.inputs import load_structure, model_inputs
from pipeline.latency import measure_latency
from pipeline.model_file import model_size, save_model
from pipeline.profile import executed_op_counts
from pipeline.progress import Progress, Silent
from pipeline.recipe import DataSpec, Recipe
from pipeline.report.environment import environment
from pipeline.report.pictures import SiteSpectrum
from pipeline.report.writer import write_report
from pipeline.results import Benchmark, RunReport, ValidationReport
from pipeline.session import SessionSpec
from pipeline.validate import validate

MODEL_NAME = "model.onnx"
PLAN_NAME = "plan.json"


@dataclass
class _Stopwatch:
    """Seconds by step."""

    timings_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings_s[step] = round(time.perf_counter() - start, 3)


def run_recipe(
    recipe: Recipe,
    output: Path,
    *,
    base_dir: Path,
    command: str = "",
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Carry out ``recipe`` and leave a bundle in ``output``.

    Args:
        recipe: what to do.
        output: the bundle's folder; an earlier bundle there is replaced.
        base_dir: what relative paths in the recipe are relative to.
        command: how the run was asked for, for the report.
        cache: where calibration is kept between runs; None computes afresh.
        progress: shows the steps.

    Returns:
        The report that was written; ``report.passed`` is the verdict.

    Raises:
        CompressOnnxError: the run could not be carried out; nothing is left behind.
    """
    _check_consistent(recipe)
    progress = progress or Silent()
    with (
        atomic_directory(output, replaceable=is_bundle) as bundle,
        TemporaryDirectory(prefix="compress-onnx-") as work,
    ):
        report = _Run(recipe, base_dir, Path(work), bundle, command, cache, progress).carry_out()
        write_manifest(bundle)
    return report


@dataclass
class _Run:
    """One run: the recipe, where it works, and what it has measured so far."""

    recipe: Recipe
    base_dir: Path
    work: Path
    bundle: Path
    command: str
    cache: ArrayCache | None
    progress: Progress
    watch: _Stopwatch = field(default_factory=_Stopwatch)
    spectra: list[SiteSpectrum] = field(default_factory=list)

    @property
    def session(self) -> SessionSpec:
        """How models run for calibration and validation."""
        benchmark = self.recipe.benchmark
        return SessionSpec(threads=benchmark.threads if benchmark else None)

    def carry_out(self) -> RunReport:
        recipe = self.recipe
        with self.watch.measure("export"), self.progress.step("export"):
            exported = export(recipe.source, self.work, base_dir=self.base_dir, seed=recipe.seed)
        candidate = self.bundle / MODEL_NAME
        with self.watch.measure("load data"):
            held_out = self._samples(recipe.validation, exported)
            calibration_data = self._samples(recipe.calibration, exported)
        plan, calibration = self._compress(exported, calibration_data, candidate)
        validation = self._validate(exported.path, candidate, held_out)
        benchmarks, unmeasured = self._benchmark(exported.path, candidate, held_out, plan)
        size = model_size(exported.path, candidate)
        quantities = measured_quantities(validation, benchmarks, size)
        report = RunReport(
            tool_version=version("compress-onnx"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            name=recipe.name,
            command=self.command,
            seed=recipe.seed,
            environment=environment(),
            export=exported.report,
            calibration=calibration.origin if calibration else None,
            plan=plan,
            size=size,
            op_counts={
                "reference": executed_op_counts(exported.path, self.session),
                "candidate": executed_op_counts(candidate, self.session),
            },
            validation=validation,
            benchmarks=benchmarks,
            unmeasured=unmeasured,
            gates=check_gates(recipe.gates, quantities),
            timings_s=self.watch.timings_s,
            notes=(*exported.notes, *(calibration.notes if calibration else ())),
        )
        with self.watch.measure("report"):
            write_report(report, self.bundle, self.spectra)
            (self.bundle / PLAN_NAME).write_text(plan.model_dump_json(indent=2), encoding="utf-8")
            copy_assets(exported.assets, self.bundle)
        return report

    def _samples(self, spec: DataSpec | None, exported: ExportedModel) -> Samples | None:
        if spec is None:
            return None
        inputs = model_inputs(load_structure(exported.path))
        return load_samples(
            spec,
            base_dir=self.base_dir,
            tokenizer_dir=exported.tokenizer_dir,
            mask=self.recipe.mask,
            input_names=[model_input.name for model_input in inputs],
            seed=self.recipe.seed,
        )

    def _compress(
        self, exported: ExportedModel, samples: Samples | None, candidate: Path
    ) -> tuple[CompressionPlan, Calibration | None]:
        recipe, progress = self.recipe, self.progress
        subject = open_subject(exported.path)
        calibration = None
        if samples is not None:
            with self.watch.measure("calibrate"):
                calibration = calibrate_subject(
                    subject,
                    samples,
                    spec=self.session,
                    batch_size=recipe.batch_size,
                    cache=self.cache,
                    progress=progress,
                )
        plan = plan_subject(subject, recipe.compression, calibration)
        with self.watch.measure("spectra"):
            self.spectra = spectra_of(subject, plan, calibration, progress)
        with self.watch.measure("compress"):
            plan = apply_plan(subject, plan, calibration, progress=progress)
            save_model(subject.model, candidate)
        return plan, calibration

    def _validate(
        self, reference: Path, candidate: Path, samples: Samples | None
    ) -> ValidationReport | None:
        if samples is None:
            return None
        with (
            self.watch.measure("validate"),
            self.progress.step("validate", len(samples)) as update,
        ):
            return validate(
                reference,
                candidate,
                samples,
                metric=self.recipe.metric,
                spec=self.session,
                batch_size=self.recipe.batch_size,
                progress=update,
            )

    def _benchmark(
        self, reference: Path, candidate: Path, samples: Samples | None, plan: CompressionPlan
    ) -> tuple[tuple[Benchmark, ...], dict[str, str]]:
        settings = self.recipe.benchmark
        if settings is None:
            return (), {}
        with self.watch.measure("benchmark"):
            return measure_latency(
                reference,
                candidate,
                settings,
                samples=samples,
                plan=plan,
                seed=self.recipe.seed,
                progress=self.progress,
            )


def _check_consistent(recipe: Recipe) -> None:
    if recipe.metric is not None and recipe.validation is None:
        raise RequestError(
            f"recipe {recipe.name}: a metric needs data to be measured on: add validation"
        )
