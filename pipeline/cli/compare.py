"""``compress-onnx compare``: what became worse from one report to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import out, print_changes, tell_ci
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.cli.html import Html, command_line, write_html
from compress_onnx.pipeline.measure.regression import changes
from compress_onnx.pipeline.report.ci import change_cases, changes_markdown
from compress_onnx.pipeline.report.page import changes_page
from compress_onnx.pipeline.report.writer import (
    REPORT_NAME,
    read_report,
    report_json,
    write_json,
    write_text,
)
from compress_onnx.pipeline.results import DepthProfile, RunReport, TranslationReport


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compare", cls=OneScreen)(compare)


def compare(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="report.json, or the folder of a run.")
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="report.json, or the folder of a run.")
    ],
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="QUANTITY=SHARE", help="What it may move, relative: speedup.cpu=0.1"),
    ] = None,
    update_baseline: Annotated[
        bool,
        typer.Option(
            "--update-baseline",
            help="Then put CANDIDATE in BASE's place, where there may be nothing yet; exit 0.",
        ),
    ] = False,
    junit: options.JUnit = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the table here, as for a pull request.")
    ] = None,
    json_path: options.Json = None,
    html: Html = None,
    force: options.Force = False,
) -> None:
    """Compare two reports of one recipe; exit 1 if a quantity became worse, beyond noise.

    Scores of the same samples are compared sample by sample, accuracies by McNemar's test,
    speed-ups by their intervals, bytes by a tolerance.

    `compress-onnx compare baselines/minilm.json bundles/minilm`

    On GitHub, what became worse is an annotation, and the table is in the job's summary.
    """
    tolerances = dict(map(_tolerance, tolerance or ()))
    written = [
        outputs.junit_file(junit),
        outputs.table_file(markdown),
        outputs.figures_file(json_path, "changes"),
        outputs.page_file(html),
    ]
    outputs.check_outputs(written, [base, candidate], force=force)
    after = read_report(candidate)
    if update_baseline and not base.exists():
        _put(base, after)
        return
    before = read_report(base)
    found = changes(before, after, tolerances)
    print_changes(found)
    cases, table = change_cases(found), changes_markdown(after.name, found)
    if markdown is not None:
        write_text(markdown, table)
    if json_path is not None:
        write_json(json_path, {"changes": found})
    if html is not None:
        depths = {"base": _depth(before), "now": _depth(after)}
        write_html(html, changes_page(after.name, found, command_line(), depths))
    tell_ci(after.name, cases, table, junit)
    if update_baseline:
        _put(base, after)
    elif any(failure is not None for failure in cases.values()):
        raise typer.Exit(1)


def _depth(report: RunReport | TranslationReport) -> DepthProfile | None:
    return report.depth if isinstance(report, RunReport) else None


def _put(base: Path, report: RunReport | TranslationReport) -> None:
    place = base / REPORT_NAME if base.is_dir() else base
    write_text(place, report_json(report))
    out.print(f"baseline: {place}", markup=False, highlight=False)


def _tolerance(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not equals or not 0 <= share < float("inf"):
        raise RequestError(f"--tolerance {text}: give a quantity and a share, such as cosine=0.002")
    return name, share
