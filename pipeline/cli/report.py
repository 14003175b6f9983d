"""``compress-onnx report``: read a bundle's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.deploy.package import MODEL_NAME
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.report import read_report, render_summary
from compress_onnx.pipeline.report.model_explorer import write_node_data
from compress_onnx.pipeline.report.writer import report_json, write_text


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("report", cls=OneScreen)(report)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `run` wrote.")],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Verify the bundle's sha256 manifest first.")
    ] = True,
    model_explorer: Annotated[
        Path | None,
        typer.Option(
            "--model-explorer", help="Write node data for Model Explorer to this JSON file, too."
        ),
    ] = None,
    show: Annotated[
        Literal["damage", "error", "rank", "form"],
        typer.Option(help="What that says of each node."),
    ] = "damage",
    json_path: options.Json = None,
    force: options.Force = False,
) -> None:
    """Print the Markdown summary of a bundle; the exit code repeats the verdict of its gates.

    `compress-onnx report bundles/minilm`

    What became of a layer (form, method, rank, predicted damage) is in the metadata of its nodes,
    which Netron shows; `--model-explorer damage.json` colours them in Model Explorer.
    """
    found = read_report(folder)
    written = [
        outputs.node_data_file(model_explorer),
        outputs.figures_file(json_path, "tool_version", "gates"),
    ]
    outputs.check_outputs(written, [folder], force=force)
    if check:
        verify_manifest(folder)
    if model_explorer is not None:
        write_node_data(folder / MODEL_NAME, show, model_explorer)
    if json_path is not None:
        write_text(json_path, report_json(found))
    typer.echo(render_summary(found))
    if not found.passed:
        raise typer.Exit(1)
