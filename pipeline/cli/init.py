"""``compress-onnx init``: a recipe to start from, for somebody's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.recipes.starter import starter_recipe
from compress_onnx.pipeline.report.writer import write_json, write_text


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("init", cls=OneScreen)(init)


def init(
    model: options.Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The recipe [default: MODEL.yaml].")
    ] = None,
    calibration: options.CalibrationFile = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", help=".npz of samples that report.")
    ] = None,
    json_path: options.Json = None,
    force: options.Force = False,
) -> None:
    """Write a recipe for MODEL with what was found in it; nothing is run.

    `compress-onnx init model.onnx -c data.npz --validation heldout.npz`
    """
    path = output or model.with_suffix(".yaml")
    written = [outputs.recipe_file(path), outputs.figures_file(json_path, "recipe", "next")]
    outputs.check_outputs(written, [model, calibration, validation], force=force)
    write_text(path, starter_recipe(model, path.parent, calibration, validation))
    out.print(f"written: {path}", markup=False, highlight=False)
    following = f"compress-onnx run {path}"
    out.print(f"next: {following}", markup=False, highlight=False)
    if json_path is not None:
        write_json(json_path, {"recipe": str(path), "next": following})
