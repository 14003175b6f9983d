"""The whole pipeline, as a recipe says.

    export -> calibrate -> (search) -> plan -> rewrite -> (recover) -> validate -> benchmark
    -> report -> bundle

The bundle folder appears complete or not at all; a failed gate still leaves a bundle, whose report
says which gate failed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.search import smallest_within
from compress_onnx.pipeline.files.atomic import atomic_directory
from compress_onnx.pipeline.files.bundle import copy_assets, is_bundle, write_manifest
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.files.model_file import model_size
from compress_onnx.pipeline.measure.gates import check_gates, measured_quantities
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.experiment import Experiment, prepare
from compress_onnx.pipeline.report.writer import write_report
from compress_onnx.pipeline.results import RunReport, SearchReport
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.progress import Progress
from compress_onnx.pipeline.runtime.threads import limited

MODEL_NAME = "model.onnx"
PLAN_NAME = "plan.json"


@limited()
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
    # The output is opened first: what cannot be written fails before minutes are spent.
    with (
        atomic_directory(output, replaceable=is_bundle) as bundle,
        TemporaryDirectory(prefix="compress-onnx-") as work,
    ):
        experiment = prepare(recipe, Path(work), base_dir=base_dir, cache=cache, progress=progress)
        request, search = recipe.compression, None
        if recipe.max_drop is not None:
            request, search = smallest_within(
                experiment, request, recipe.max_drop, Path(work) / "search"
            )
        report = _fill(bundle, experiment, request, search, command)
        write_manifest(bundle)
    return report


def _fill(
    bundle: Path,
    experiment: Experiment,
    request: CompressionSpec,
    search: SearchReport | None,
    command: str,
) -> RunReport:
    """Compress, measure, and write everything but the manifest into ``bundle``."""
    recipe, exported, calibration = experiment.recipe, experiment.exported, experiment.calibration
    candidate = bundle / MODEL_NAME
    plan = experiment.compress(request, candidate)
    recovery = experiment.recover(candidate)
    validation = experiment.validate(candidate)
    benchmarks, unmeasured = experiment.benchmark(candidate, plan)
    size = model_size(exported.path, candidate)
    report = RunReport(
        tool_version=version("compress-onnx"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=recipe.name,
        command=command,
        seed=recipe.seed,
        environment=environment(),
        export=exported.report,
        calibration=calibration.origin if calibration else None,
        search=search,
        plan=plan,
        recovery=recovery,
        size=size,
        op_counts={
            "reference": executed_op_counts(exported.path, experiment.session),
            "candidate": executed_op_counts(candidate, experiment.session),
        },
        validation=validation,
        benchmarks=benchmarks,
        unmeasured=unmeasured,
        gates=check_gates(recipe.gates, measured_quantities(validation, benchmarks, size)),
        timings_s=experiment.watch.timings_s,
        notes=(*exported.notes, *(calibration.notes if calibration else ()), *plan.notes),
    )
    write_report(report, bundle, experiment.spectra(plan))
    (bundle / PLAN_NAME).write_text(plan.model_dump_json(indent=2), encoding="utf-8")
    copy_assets(exported.assets, bundle)
    return report
