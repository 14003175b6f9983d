"""A recipe made ready: everything in place to compress its model and to measure what came of it.

An experiment is of one graph (:class:`~pipeline.recipes.single.ModelExperiment`) or of an
encoder-decoder (:class:`~pipeline.translate.experiment.TranslationExperiment`). A run asks it for
one report, a sweep for a row a variant; neither knows which kind it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.export.permission import require_permission_of
from compress_onnx.pipeline.measure.gates import check_quantities
from compress_onnx.pipeline.measure.quantities import recipe_quantities
from compress_onnx.pipeline.recipe import Recipe, TranslationMetric
from compress_onnx.pipeline.recipes.single import prepare_model
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.results import Report, SweepRow
from compress_onnx.pipeline.runtime.session import SessionSpec
from compress_onnx.pipeline.translate.experiment import prepare_translation


class Experiment(Protocol):
    """What can be done with a recipe that is ready."""

    def fill(self, bundle: Path, heading: Heading) -> Report:
        """Compress as the recipe says, measure, and write all but the manifest into ``bundle``.

        Raises:
            CompressOnnxError: it cannot be carried out.
        """

    def row(self, variant: CompressionSpec) -> SweepRow:
        """Compress in one way, and measure what came of it.

        Raises:
            RequestError: the variant makes no sense for this model.
        """


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    base_dir: Path,
    settings: RunSettings | None = None,
) -> Experiment:
    """Export the model of ``recipe``, load its data, and learn what compressing needs.

    Args:
        recipe: what to prepare.
        folder: an empty folder for the exported model.
        base_dir: what relative paths in the recipe are relative to.
        settings: cache, progress, and whether Python code that the recipe names may run.

    Raises:
        RequestError: the recipe contradicts itself, or names code that may not run.
        CompressOnnxError: the model or the data cannot be had.
    """
    settings = settings_of(recipe, settings)
    check_quantities(recipe.gates, recipe_quantities(recipe))
    require_permission_of(recipe, base_dir, allow_code=settings.allow_code)
    if isinstance(recipe.metric, TranslationMetric):
        return prepare_translation(recipe, folder, base_dir=base_dir, settings=settings)
    return prepare_model(recipe, folder, base_dir=base_dir, settings=settings)


def settings_of(recipe: Recipe, settings: RunSettings | None = None) -> RunSettings:
    """``settings`` with what ``recipe`` says: CPU threads, batches and seed."""
    settings = settings or RunSettings()
    threads = recipe.benchmark.threads if recipe.benchmark else settings.session.threads
    return replace(
        settings,
        session=SessionSpec(threads=threads),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
