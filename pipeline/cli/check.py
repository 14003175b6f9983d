"""``compress-onnx check``: recipes and bundles in a repository, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.cli import options
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.files.bundle import MANIFEST_NAME, verify_manifest
from compress_onnx.pipeline.files.signature import require_signature
from compress_onnx.pipeline.recipe import read_recipe


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("check")(check)


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Recipes, and bundles or their manifest.json."),
    ],
    key: options.RequireManifest = None,
) -> None:
    """Read recipes and hold bundles against their manifests; exit 2 at the first that is wrong.

    Nothing is exported or run, and no code that a recipe names: made for pre-commit hooks.
    """
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
