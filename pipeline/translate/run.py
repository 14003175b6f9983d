"""Run and sweep translation recipes: the counterparts of :mod:`pipeline.recipes.run`.

    export -> calibrate -> plan -> rewrite both graphs -> translate with both models in turn
    -> report -> bundle

The bundle folder appears complete or not at all; a failed gate still leaves a bundle. It holds both
graphs with configuration and tokenizer, as optimum's ``ORTModelForSeq2SeqLM`` loads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.graph_passes.errors import NothingToCompressError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.files.atomic import atomic_directory
from compress_onnx.pipeline.files.bundle import is_bundle, write_manifest
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.measure.gates import check_gates, translation_quantities
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.report import write_translation_report
from compress_onnx.pipeline.results import (
    SweepReport,
    SweepRow,
    TranslationReport,
    TranslationScores,
)
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.progress import Progress
from compress_onnx.pipeline.runtime.threads import limited
from compress_onnx.pipeline.translate.experiment import TranslationExperiment, prepare_translation

_COLUMNS = ("bleu", "chrf", "bleu_drop", "chrf_drop")


@limited()
def run_translation(
    recipe: Recipe,
    output: Path,
    *,
    base_dir: Path,
    command: str = "",
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> TranslationReport:
    """Carry out ``recipe`` and leave a bundle in ``output``.

    Args:
        recipe: what to do; its metric is ``translation``.
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
    with (
        atomic_directory(output, replaceable=is_bundle) as bundle,
        TemporaryDirectory(prefix="compress-onnx-") as work,
    ):
        experiment = prepare_translation(
            recipe, Path(work), base_dir=base_dir, cache=cache, progress=progress
        )
        report = _fill(bundle, experiment, command)
        write_manifest(bundle)
    return report


@limited()
def sweep_translations(
    recipe: Recipe,
    variants: Sequence[CompressionSpec],
    *,
    base_dir: Path,
    cache: ArrayCache | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Try all ``variants`` on the model of ``recipe``; the reference translates once, untimed.

    Args:
        recipe: model, data and metric.
        variants: what to try, in the order of the rows.
        base_dir: what relative paths in the recipe are relative to.
        cache: where calibration is kept between runs.
        progress: shows the steps.

    Raises:
        CompressOnnxError: the sweep could not be carried out. A variant that can compress nothing
            is a row that says so.
    """
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        experiment = prepare_translation(
            recipe, Path(work), base_dir=base_dir, cache=cache, progress=progress
        )
        reference = experiment.scores(experiment.translate(experiment.reference))
        rows = tuple(measure_translation(experiment, reference, variant) for variant in variants)
    return SweepReport(
        tool_version=version("compress-onnx"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=recipe.name,
        environment=environment(),
        rows=rows,
    )


def _fill(bundle: Path, experiment: TranslationExperiment, command: str) -> TranslationReport:
    """Compress, measure, and write everything but the manifest into ``bundle``."""
    recipe, exported = experiment.recipe, experiment.exported
    plans = experiment.compress(recipe.compression, bundle)
    texts = experiment.race(bundle)
    reference, candidate = (experiment.scores(found) for found in texts[:2])
    timing = texts.timing if recipe.benchmark is not None else None
    size = experiment.size(bundle)
    quantities = translation_quantities(reference, candidate, size, timing)
    notes = (*exported.notes, *plans.notes, *plans.encoder.notes, *plans.decoder.notes)
    report = TranslationReport(
        tool_version=version("compress-onnx"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=recipe.name,
        command=command,
        seed=recipe.seed,
        environment=environment(),
        export=exported.report,
        calibration=experiment.calibration,
        encoder=plans.encoder,
        decoder=plans.decoder,
        size=size,
        validation=experiment.validation,
        beams=experiment.metric.beams,
        reference=reference,
        candidate=candidate,
        timing=timing,
        gates=check_gates(recipe.gates, quantities),
        timings_s=experiment.watch.timings_s,
        notes=tuple(dict.fromkeys(notes)),
    )
    write_translation_report(report, bundle)
    for name, plan in (("encoder", plans.encoder), ("decoder", plans.decoder)):
        text = plan.model_dump_json(indent=2)
        (bundle / f"{name}-plan.json").write_text(text, encoding="utf-8")
    return report


def measure_translation(
    experiment: TranslationExperiment,
    reference: TranslationScores,
    variant: CompressionSpec,
    beams: int | None = None,
) -> SweepRow:
    """Compress the model of ``experiment`` in one way, and score its translations.

    Args:
        experiment: the model and its sentences.
        reference: the scores of the original.
        variant: how to compress.
        beams: hypotheses that the search keeps; as the recipe says when None.

    Raises:
        RequestError: the variant makes no sense for this model.
    """
    with TemporaryDirectory(prefix="compress-onnx-") as work:
        folder = Path(work)
        try:
            plans = experiment.compress(variant, folder)
        except NothingToCompressError as error:
            return SweepRow(variant=variant, problem=str(error))
        scores = experiment.scores(experiment.translate(folder, beams))
        size = experiment.size(folder)
    parts = (plans.encoder, plans.decoder)
    ranks = [site.rank for plan in parts for site in plan.factored if site.rank is not None]
    quantities = translation_quantities(reference, scores, size)
    return SweepRow(
        variant=variant.model_copy(update={"allocation": plans.encoder.allocation}),
        ranks=(min(ranks), max(ranks)),
        parameters_before=sum(plan.parameters_before for plan in parts),
        parameters_after=sum(plan.parameters_after for plan in parts),
        size=size,
        metrics={name: quantities[name] for name in _COLUMNS},
    )
