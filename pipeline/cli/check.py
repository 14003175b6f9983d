"""``compress-onnx check``: recipes and bundles in a repository, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options, outputs
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.files.bundle import MANIFEST_NAME, verify_manifest
from compress_onnx.pipeline.files.signature import require_signature
from compress_onnx.pipeline.recipe import read_recipe
from compress_onnx.pipeline.report.writer import write_json


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("check", cls=OneScreen)(check)


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Recipes, and bundles or their manifest.json."),
    ],
    key: options.RequireManifest = None,
    json_path: options.Json = None,
) -> None:
    """Read recipes and hold bundles against their manifests; exit 2 at the first that is wrong.

    `compress-onnx check models/minilm.yaml bundles/minilm`

    Nothing is exported or run, and no code that a recipe names: made for pre-commit hooks.
    """
    outputs.check_outputs([outputs.figures_file(json_path, "fine")], paths, force=False)
    for path in paths:
        if path.is_dir() or path.name == MANIFEST_NAME:
            folder = path if path.is_dir() else path.parent
            if key is None:
                verify_manifest(folder)
            else:
                require_signature(folder, key)
        elif path.suffix in {".yaml", ".yml"}:
            read_recipe(path)
        else:
            raise RequestError(f"{path} is neither a recipe (.yaml) nor a bundle: name one")
        out.print(f"{path}: fine", markup=False, highlight=False)
    if json_path is not None:
        write_json(json_path, {"fine": [str(path) for path in paths]})
