"""All commands in one app, and what expected errors become: one line and an exit code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import onnxruntime
import typer
from rich.logging import RichHandler

from compress_onnx.graph_passes.errors import CompressOnnxError
from compress_onnx.pipeline.cli import (
    analyze,
    bench,
    bundle,
    cache,
    check,
    compare,
    compress,
    doctor,
    export,
    help,  # noqa: A004 - as it is typed
    init,
    optimize,
    report,
    run,
    sign,
    sweep,
    validate,
)
from compress_onnx.pipeline.cli.app import app
from compress_onnx.pipeline.cli.console import errors, print_steps
from compress_onnx.pipeline.compress.search import NoShareWithinError
from compress_onnx.pipeline.runtime.threads import limited

for command in (
    run,
    export,
    analyze,
    compress,
    optimize,
    validate,
    bench,
    sweep,
    report,
    bundle,
    sign,
    compare,
    check,
    init,
    doctor,
    cache,
    help,
):
    command.register(app)

# Typer exports only a subclass of it, and keeps it in a package that differs by version.
_UsageError: Any = typer.BadParameter.__mro__[1]
_FATAL = 4
# What Typer returns after Ctrl-C, having said nothing.
_TYPER_INTERRUPTED = 130


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command that ``arguments`` name; returns the exit code.

    Raises:
        KeyboardInterrupt: somebody stopped it.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
        force=True,  # libraries set up logging of their own when they are imported
    )
    # What onnx_ir warns of while it reads a file, load_model checks and refuses.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    # This process is the command line's own; its errors say what a provider's complaints would.
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with limited():
            code = app(list(arguments), standalone_mode=False) or 0
    except typer.Abort as stop:  # what Typer makes of Ctrl-C in some versions
        raise KeyboardInterrupt from stop
    except CompressOnnxError as error:
        if isinstance(error, NoShareWithinError):
            print_steps(error.steps)
        return _failed(str(error), error.exit_code)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else app.info.name
        problem = " ".join(error.format_message().split()).removesuffix(".") or "no command"
        return _failed(f"{problem} (see {command} --help)", CompressOnnxError.exit_code)
    if code == _TYPER_INTERRUPTED:
        raise KeyboardInterrupt
    return int(code)


def _failed(message: str, exit_code: int) -> int:
    errors.print(
        f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True
    )
    return exit_code
