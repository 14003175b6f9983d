"""``compress-onnx report``: read a bundle's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.report import read_report, render_summary


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("report")(report)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `run` wrote.")],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Verify the bundle's sha256 manifest first.")
    ] = True,
) -> None:
    """Print the Markdown summary of a bundle; the exit code repeats the verdict of its gates."""
    found = read_report(folder)
    if check:
        verify_manifest(folder)
    typer.echo(render_summary(found))
    if not found.passed:
        raise typer.Exit(1)
