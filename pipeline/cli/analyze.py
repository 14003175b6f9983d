"""``compress-onnx analyze``: what could be compressed, what it would cost, and is it worth it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.graph_passes.planning.planner import make_plan
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import (
    ProgressBars,
    note,
    out,
    print_plan_error,
    print_potential,
    print_skipped,
    table,
)
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.holdout import hold_out
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.spectra import SiteSpectrum, spectra_of
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.recipe import Recipe, read_recipe
from compress_onnx.pipeline.recipes.experiment import prepare
from compress_onnx.pipeline.recipes.single import ModelExperiment
from compress_onnx.pipeline.report.analysis import analyze as analyze_model
from compress_onnx.pipeline.report.analysis.page import write_analysis
from compress_onnx.pipeline.report.analysis.site_profiles import ranks_for
from compress_onnx.pipeline.report.drawing import require_pictures
from compress_onnx.pipeline.report.formats import significant
from compress_onnx.pipeline.runtime.samples import Samples

_HELD_OUT_EVERY = 4
"""Every fourth calibration sample is held out where no other data is given."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("analyze", cls=OneScreen)(analyze)


def analyze(
    model: Annotated[
        Path,
        typer.Argument(help="An ONNX model, which is never changed; or a recipe (YAML)."),
    ],
    calibration: options.CalibrationFile = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help=".npz to compare methods on [default: a quarter of --calibration]."),
    ] = None,
    mask: options.Mask = None,
    params: Annotated[
        float, typer.Option("--params", "-p", help="Show the least error at this share.")
    ] = 0.5,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for analysis.md, analysis.json, pictures."),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the whole spectra here.")
    ] = None,
    potential_path: Annotated[
        Path | None,
        typer.Option(
            "--potential", help="Also write where bytes and time go, with the verdict, here (JSON)."
        ),
    ] = None,
    no_benchmark: Annotated[
        bool, typer.Option("--no-benchmark", help="Leave the time out: the bytes alone decide.")
    ] = False,
    batch_size: options.BatchSize = 32,
    allow_code: options.AllowCode = False,
    force: options.Force = False,
    no_cache: options.NoCache = False,
) -> None:
    """List the linear sites of MODEL with the least error that any factorization could have.

    Then tell whether it is worth it: which share of the weights' bytes and of the measured time is
    in linear layers, the only ones that are changed, which is elsewhere, and the speed-up that is
    possible at most. Without `--calibration` the time is that on made-up inputs.

    Errors are relative (0 exact, 1 all lost); with `--calibration` they are those of the sites'
    outputs on that data, else those of the weights. Changes nothing. With `-o`, also pictures of
    explained variance and of densities, and a test of what normalizations do to activation-aware
    SVD. A recipe brings its own model and data:

    `compress-onnx analyze models/minilm-lowrank.yaml --allow-code -o build/analysis`
    """
    if output is not None:
        require_pictures()
    request = options.validated(
        CompressionSpec, {"method": {"name": "svd"}, "params": params, "rank_multiple": 1}
    )
    cache, progress = options.cache_unless(no_cache), ProgressBars()
    settings = RunSettings(
        batch_size=batch_size, cache=cache, progress=progress, allow_code=allow_code
    )
    files = _Files(calibration, held_out, mask)
    written = (
        outputs.figures_file(json_path, "site", "weight_tail"),
        outputs.figures_file(potential_path, "kinds", "verdict"),
        outputs.analysis_folder(output),
    )
    outputs.check_outputs(written, (*_read(model), calibration, held_out), force=force)
    with _opened(model, files, output is not None, settings) as (name, learned, unseen):
        basis = learned.basis(request)
        plan = make_plan(learned.original.table, request)
        spectra = spectra_of(basis, plan, progress)
        plan = Compressed(basis, plan, progress=progress).evaluated()
        _print_sites(plan, spectra, params)
        potential = learned.potential(timed=not no_benchmark)
        for text in learned.calibration.notes if learned.calibration else ():
            note(text)
        if json_path is not None:
            with atomic_file(json_path) as temporary:
                temporary.write_text(json.dumps([_plain(s) for s in spectra], indent=1), "utf-8")
        if potential_path is not None:
            with atomic_file(potential_path) as temporary:
                temporary.write_text(potential.model_dump_json(indent=1), "utf-8")
        if output is not None:
            assert unseen is not None  # see _opened
            analysis = analyze_model(learned, name, plan, spectra, unseen, potential=potential)
            write_analysis(analysis, output)
            for sentence in analysis.report.test.verdict:
                out.print(sentence, markup=False, highlight=False)
            out.print(f"written: {output}", markup=False, highlight=False)
        print_potential(potential)


@dataclass(frozen=True)
class _Files:
    """The data files that were given."""

    calibration: Path | None = None
    held_out: Path | None = None
    mask: str | None = None


class _Material(NamedTuple):
    """What is analyzed, and what methods are compared on."""

    name: str
    learned: Learned
    held_out: Samples | None


def _opened(
    source: Path, files: _Files, split: bool, settings: RunSettings
) -> AbstractContextManager[_Material]:
    """The material in ``source``; its own data for a recipe, else that of ``files``.

    Raises:
        RequestError: data is given where there is some, or is missing where it is needed.
    """
    if source.suffix not in {".yaml", ".yml"}:
        return nullcontext(_model_material(source, files, split, settings))
    if files != _Files():
        raise RequestError("a recipe brings its own data: drop --calibration, --held-out, --mask")
    recipe = read_recipe(source)
    if split and (recipe.calibration is None or recipe.validation is None):
        raise RequestError(
            "--output compares methods on held-out data: add calibration and validation to the "
            "recipe"
        )
    return _recipe_material(recipe, source.parent, settings)


def _read(source: Path) -> list[Path]:
    if source.suffix not in {".yaml", ".yml"}:
        return [source]
    return outputs.recipe_inputs(source, read_recipe(source))


def _model_material(model: Path, files: _Files, split: bool, settings: RunSettings) -> _Material:
    if files.calibration is None and (split or files.held_out is not None):
        raise RequestError("--output and --held-out look at activations: give --calibration")
    if files.calibration is None:
        return _Material(model.name, learn(model, None, settings), None)
    samples = options.samples_for(model, files.calibration, files.mask)
    held_out = None
    if files.held_out is not None:
        held_out = options.samples_for(model, files.held_out, files.mask)
    elif split:
        samples, held_out = hold_out(samples, _HELD_OUT_EVERY)
    return _Material(model.name, learn(model, samples, settings), held_out)


@contextmanager
def _recipe_material(recipe: Recipe, base_dir: Path, settings: RunSettings) -> Iterator[_Material]:
    with TemporaryDirectory(prefix="compress-onnx-") as folder:
        experiment = prepare(recipe, Path(folder), base_dir=base_dir, settings=settings)
        if not isinstance(experiment, ModelExperiment):
            raise RequestError(
                f"recipe {recipe.name}: analyze takes models of one graph, and this is an encoder "
                "with a decoder: export it and analyze each graph"
            )
        yield _Material(recipe.name, experiment.learned, experiment.held_out)


def _print_sites(plan: CompressionPlan, spectra: Sequence[SiteSpectrum], params: float) -> None:
    """A row for each site, then the products that are none, and the sums."""
    shown = table(
        "site", "group", "shape", "rank for 90 %", "for 99 %", f"least error at {params:.0%}"
    )
    for site, spectrum in zip(plan.sites, spectra, strict=True):
        least = "dense" if site.error is None else significant(site.error.bound)
        energies = map(str, ranks_for(tail_of(spectrum)))
        shape = f"{site.in_features}x{site.out_features}"
        shown.add_row(escape(site.site), site.group, shape, *energies, least)
    if plan.sites:
        out.print(shown)
    print_skipped(plan.skipped)
    out.print(
        f"{len(plan.sites)} linear sites with {plan.parameters_before:,} parameters, "
        f"{len(plan.skipped)} other matrix products",
        highlight=False,
    )
    if plan.error is not None:
        out.print(f"plain SVD at {params:.0%}, uniform ranks, on these data:", highlight=False)
        print_plan_error(plan.error)


def tail_of(spectrum: SiteSpectrum) -> NDArray[np.float64]:
    """The squared error at each rank in the best metric known."""
    activation = spectrum.activation_tail
    return spectrum.weight_tail if activation is None else activation


def _plain(spectrum: SiteSpectrum) -> dict[str, object]:
    activation = spectrum.activation_tail
    return {
        "site": spectrum.site,
        "group": spectrum.group,
        "weight_tail": spectrum.weight_tail.tolist(),
        "activation_tail": None if activation is None else activation.tolist(),
    }
