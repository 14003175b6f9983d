"""``compress-onnx cache``: what is kept between runs, and how to get rid of it."""

from __future__ import annotations

import typer

from compress_onnx.pipeline.cli import outputs
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen, Overview
from compress_onnx.pipeline.cli.options import Json
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.writer import write_json

_cache = typer.Typer(
    cls=Overview, help="What is kept between runs: `info` and `clear`.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(_cache, name="cache")


@_cache.command(cls=OneScreen)
def info(json_path: Json = None) -> None:
    """Print folder, entries, size and limit.

    `COMPRESS_ONNX_CACHE` moves the folder, `COMPRESS_ONNX_CACHE_LIMIT` (`500MB`) sets the limit.
    """
    outputs.check_outputs([outputs.figures_file(json_path, "limit_bytes")], [], force=False)
    found = ArrayCache(default_folder()).info()
    lines = {
        "folder": found.folder,
        "entries": found.entries,
        "size": formats.size(found.size_bytes),
        "limit": formats.size(found.limit_bytes),
    }
    for name, value in lines.items():
        out.print(f"{name:8}{value}", markup=False, highlight=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, {**found._asdict(), "folder": str(found.folder)})


@_cache.command(cls=OneScreen)
def clear(json_path: Json = None) -> None:
    """Remove all entries; what is computed again only takes time."""
    outputs.check_outputs([outputs.figures_file(json_path, "removed_bytes")], [], force=False)
    cache = ArrayCache(default_folder())
    removed = cache.info().size_bytes
    cache.clear()
    out.print(f"{formats.size(removed)} removed", markup=False, highlight=False)
    if json_path is not None:
        write_json(json_path, {"removed_bytes": removed})
