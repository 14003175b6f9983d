"""The whole pipeline, as a recipe says.

    export -> learn -> (search) -> compress -> (recover) -> validate -> benchmark
    -> report -> bundle

The bundle folder appears complete or not at all; a failed gate still leaves a bundle, whose report
says which gate failed.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.atomic import anything, atomic_directory
from compress_onnx.pipeline.files.bundle import is_bundle, write_manifest
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.experiment import prepare
from compress_onnx.pipeline.report.heading import Heading
from compress_onnx.pipeline.results import Report
from compress_onnx.pipeline.runtime.threads import limited


@limited()
def run_recipe(
    recipe: Recipe,
    output: Path,
    *,
    base_dir: Path,
    command: str = "",
    settings: RunSettings | None = None,
    force: bool = False,
) -> Report:
    """Carry out ``recipe`` and leave a bundle in ``output``.

    Args:
        recipe: what to do.
        output: the bundle's folder; an earlier bundle there is replaced.
        base_dir: what relative paths in the recipe are relative to.
        command: how the run was asked for, for the report.
        settings: cache, progress, and whether Python code that the recipe names may run.
        force: replace whatever is in ``output``.

    Returns:
        The report that was written; ``report.passed`` is the verdict.

    Raises:
        CompressOnnxError: the run could not be carried out; nothing is left behind.
    """
    # The output is opened first: what cannot be written fails before minutes are spent.
    with (
        atomic_directory(output, replaceable=anything if force else is_bundle) as bundle,
        TemporaryDirectory(prefix="compress-onnx-") as work,
    ):
        experiment = prepare(recipe, Path(work), base_dir=base_dir, settings=settings)
        report = experiment.fill(bundle, Heading(recipe.name, command))
        write_manifest(bundle)
    return report
