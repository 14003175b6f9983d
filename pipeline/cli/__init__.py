"""The command line ``compress-onnx``: one module a command, nothing here that a library needs.

Exit codes: 0 all gates passed; 1 a gate failed; 2 the request was wrong; 3 nothing to compress.
"""

from __future__ import annotations

import logging
import sys

from rich.logging import RichHandler

from graph_passes.errors import CompressOnnxError
from pipeline.cli import analyze, bench, compress, export, report, run, sweep, validate
from pipeline.cli.app import app
from pipeline.cli.console import errors

__all__ = ["app", "main"]

for command in (run, export, analyze, compress, validate, bench, sweep, report):
    command.register(app)


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
        app()
    except CompressOnnxError as error:
        errors.print(
            f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_code)
