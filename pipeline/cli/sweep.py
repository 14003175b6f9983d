"""``compress-onnx sweep``: method x allocation x budget over a recipe, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.recipe import NpzData, Recipe, read_recipe
from compress_onnx.pipeline.recipes.sweep import grid
from compress_onnx.pipeline.recipes.sweep import sweep as sweep_recipe
from compress_onnx.pipeline.report.drawing import require_pictures
from compress_onnx.pipeline.report.sweep import markdown
from compress_onnx.pipeline.report.writer import report_json, write_sweep, write_text
from compress_onnx.pipeline.runtime.backend import EMBEDDED


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("sweep", cls=OneScreen)(sweep)


def sweep(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for sweep.md, sweep.json and pareto.png."),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="May be given several times.")
    ] = None,
    params: Annotated[
        list[float] | None, typer.Option("--params", "-p", help="May be given several times.")
    ] = None,
    bytes_: Annotated[
        list[float] | None, typer.Option("--bytes", help="May be given several times.")
    ] = None,
    flops: Annotated[
        list[float] | None, typer.Option("--flops", help="May be given several times.")
    ] = None,
    latency: Annotated[
        list[float] | None, typer.Option("--latency", help="May be given several times.")
    ] = None,
    ranks: Annotated[
        list[int] | None,
        typer.Option("--rank", help="The same rank for every site; may be given several times."),
    ] = None,
    allocations: Annotated[
        list[str] | None, typer.Option("--allocation", help="May be given several times.")
    ] = None,
    stores: Annotated[
        list[str] | None, typer.Option("--store", help="May be given several times.")
    ] = None,
    domain: options.Domains = None,
    rank_multiple: Annotated[
        int | None, typer.Option(min=1, help="Ranks are multiples of it.")
    ] = None,
    allow_larger: Annotated[
        bool, typer.Option("--allow-larger", help="Also rewrite where factors are not smaller.")
    ] = False,
    no_benchmark: Annotated[
        bool, typer.Option("--no-benchmark", help="Leave the latency of the variants out.")
    ] = False,
    allow_code: options.AllowCode = False,
    json_path: options.Json = None,
    force: options.Force = False,
    no_cache: options.NoCache = False,
    backend: options.Backend = EMBEDDED,
) -> None:
    """Try every combination of methods, allocations and budgets on the model of RECIPE.

    `compress-onnx sweep models/minilm-lowrank.yaml --allow-code -m svd -m asvd -p 0.7 -p 0.5`
    """
    if output is not None:
        require_pictures()
    recipe = read_recipe(recipe_path)
    further = {
        name: NpzData(kind="npz", path=path.absolute())
        for name, path in options.named_files(domain).items()
    }
    if further:
        sets = {"domains": {**recipe.domains, **further}}
        recipe = options.validated(Recipe, {**dict(recipe), **sets})
    read = outputs.recipe_inputs(recipe_path, recipe)
    written = [outputs.sweep_folder(output), outputs.figures_file(json_path, "rows")]
    outputs.check_outputs(written, read, force=force)
    changes: dict[str, object] = {}
    if rank_multiple is not None:
        changes["rank_multiple"] = rank_multiple
    if allow_larger:
        changes["allow_larger"] = True
    base = recipe.compression.plain.model_copy(update=changes)
    variants = grid(
        base,
        [options.method_spec(text) for text in methods or ()],
        options.budgets(params, bytes_, flops, latency, ranks),
        allocations or (),
        stores or (),
    )
    if no_benchmark:
        recipe = recipe.model_copy(update={"benchmark": None})
    report = sweep_recipe(
        recipe,
        variants,
        base_dir=recipe_path.parent,
        settings=options.settings(no_cache, allow_code, backend=backend),
    )
    typer.echo(markdown(report))
    if json_path is not None:
        write_text(json_path, report_json(report))
    if output is not None:
        write_sweep(report, output)
        out.print(f"written: {output}", markup=False, highlight=False)
