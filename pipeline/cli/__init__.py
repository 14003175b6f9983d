"""The command line ``compress-onnx``: one module a command, nothing here that a library needs.

Exit codes: 0 all gates passed; 1 a gate failed; 2 the request was wrong; 3 nothing to compress.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

import typer
from rich.logging import RichHandler

from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.cli import (
    analyze,
    bench,
    compress,
    export,
    report,
    run,
    sweep,
    validate,
)
from compress_onnx.pipeline.cli.app import app
from compress_onnx.pipeline.cli.console import errors
from compress_onnx.pipeline.runtime.threads import limited

__all__ = ["app", "main"]

for command in (run, export, analyze, compress, validate, bench, sweep, report):
    command.register(app)


# Typer exports only a subclass of it, and keeps it in a package that differs by version.
_UsageError: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; expected errors become one line and an exit code."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
    )
    # What onnx_ir warns of while it reads a file, load_model checks and refuses.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        with limited():
            sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except CompressOnnxError as error:
        _fail(str(error), error.exit_code)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else app.info.name
        problem = " ".join(error.format_message().split()).removesuffix(".")
        _fail(f"{problem} (see {command} --help)", CompressOnnxError.exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    errors.print(
        f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True
    )
    sys.exit(exit_code)
