"""``compress-onnx run``: everything that a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.request import BUDGETS
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import (
    note,
    out,
    print_benchmarks,
    print_gates,
    print_optimized,
    print_plan,
    print_recovery,
    print_search,
    print_size,
    print_translations,
    print_validation,
    tell_ci,
)
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.cli.html import command_line
from compress_onnx.pipeline.recipe import Recipe, RecoverySpec, read_recipe
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.report import render_summary
from compress_onnx.pipeline.report.ci import gate_cases
from compress_onnx.pipeline.report.tracking import check_tracker, log_run, tracker_of
from compress_onnx.pipeline.report.writer import report_json, write_text
from compress_onnx.pipeline.results import Report, RunReport, TranslationReport
from compress_onnx.pipeline.runtime.backend import EMBEDDED


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("run", cls=OneScreen)(run)


def run(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the bundle [default: bundles/NAME]."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="Instead of the recipe's method: NAME[:KEY=VALUE,…]."),
    ] = None,
    params: options.Params = None,
    bytes_: options.Bytes = None,
    flops: options.Flops = None,
    latency: options.Latency = None,
    rank: options.Rank = None,
    store: options.Store = None,
    max_drop: options.MaxDrop = None,
    recovery: options.Recover = None,
    allow_code: options.AllowCode = False,
    preset: Annotated[
        Literal["99", "99.9"] | None,
        typer.Option(help="MLPerf's accuracy class: so many percent of the score are kept."),
    ] = None,
    junit: options.JUnit = None,
    json_path: options.Json = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="mlflow:URI",
            help="Also log parameters, metrics and the bundle to this MLflow store.",
        ),
    ] = None,
    force: options.Force = False,
    no_cache: options.NoCache = False,
    backend: options.Backend = EMBEDDED,
) -> None:
    """Export, calibrate, compress, validate, benchmark, report and bundle as RECIPE says.

    `compress-onnx run models/minilm.yaml --allow-code`

    Leaves a folder with the model, `plan.json`, `report.json`, `summary.md`, pictures, tokenizer
    files and a sha256 manifest; with the metric `translation`, with encoder and decoder, and a plan
    of each. The exit code is the verdict of the recipe's gates.

    Where the recipe says `optimize`, the model is the best form within its drop, beside its rivals;
    `--max-drop` is then another drop, and a method, a budget or a store is taken instead of it.

    On GitHub, a failed gate is an annotation, and the summary is in the job's.
    """
    budgets = options.budgets(params, bytes_, flops, latency, rank)
    recipe = _overridden(read_recipe(recipe_path), method, budgets, max_drop, store)
    recipe = _recovering(recipe, recovery)
    if preset is not None:
        values = {**recipe.model_dump(exclude_unset=True), "preset": preset}
        recipe = options.validated(Recipe, values)
    folder = output or recipe.output or Path("bundles") / recipe.name
    read = outputs.recipe_inputs(recipe_path, recipe)
    written = [
        outputs.bundle_output(folder),
        outputs.junit_file(junit),
        outputs.figures_file(json_path, "tool_version", "gates"),
    ]
    outputs.check_outputs(written, read, force=force)
    tracker = tracker_of(log) if log is not None else None
    if tracker is not None:
        check_tracker(tracker)
    report = run_recipe(
        recipe,
        folder,
        base_dir=recipe_path.parent,
        command=command_line(),
        settings=options.settings(no_cache, allow_code, backend=backend),
        force=force,
    )
    _print_report(report)
    for text in report.notes:
        note(text)
    passed = print_gates(report.gates)
    assert isinstance(report, RunReport | TranslationReport)
    if json_path is not None:
        write_text(json_path, report_json(report))
    tell_ci(report.name, gate_cases(report.gates), render_summary(report), junit)
    out.print(f"bundle: {folder}", markup=False, highlight=False)
    if tracker is not None:
        run_id = log_run(tracker, recipe, report, folder)
        out.print(f"logged: {run_id} at {tracker}", markup=False, highlight=False)
    if not passed:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    if isinstance(report, TranslationReport):
        for plan in (report.encoder, report.decoder):
            print_plan(plan)
        print_size(report.size)
        print_translations(report)
    if not isinstance(report, RunReport):
        return
    if report.plan is not None:
        print_plan(report.plan)
    if report.optimize is not None:
        print_optimized(report.optimize)
    print_size(report.size)
    if report.search is not None:
        print_search(report.search)
    if report.recovery is not None:
        print_recovery(report.recovery)
    if report.validation is not None:
        print_validation(report.validation)
    told = report.validation.unmeasured if report.validation is not None else {}
    untold = {name: why for name, why in report.unmeasured.items() if name not in told}
    print_benchmarks(report.benchmarks, untold)


def _overridden(
    recipe: Recipe,
    method: str | None,
    budgets: Mapping[str, float],
    max_drop: float | None,
    store: str | None,
) -> Recipe:
    """The recipe with what the command line says instead.

    Raises:
        RequestError: a value is out of range, or two exclude each other.
    """
    if budgets and max_drop is not None:
        raise RequestError(
            f"--{next(iter(budgets))} and --max-drop exclude each other: give one of them"
        )
    changes: dict[str, object] = {}
    if method is not None:
        changes["method"] = options.method_spec(method).model_dump()
    if budgets:
        changes |= {**dict.fromkeys((*BUDGETS, "rank")), **budgets}
    if store is not None:
        changes["store"] = store
    if changes:
        changes["optimize"] = None
    compression = {**recipe.compression.model_dump(), **changes}
    values = {**recipe.model_dump(exclude_unset=True), "compression": compression}
    if max_drop is not None and compression["optimize"] is not None:
        compression["optimize"] = {**compression["optimize"], "max_drop": max_drop}
    elif max_drop is not None:
        values["max_drop"] = max_drop
    return options.validated(Recipe, values)


def _recovering(recipe: Recipe, budget: str | None) -> Recipe:
    """The recipe with another budget for recovery; the rest of its settings stays.

    Raises:
        RequestError: the budget is no duration.
    """
    if budget is None:
        return recipe
    given = recipe.recovery.model_dump() if recipe.recovery is not None else {}
    settings = options.validated(RecoverySpec, {**given, "budget": budget})
    return recipe.model_copy(update={"recovery": settings})
