"""The command line's root: name, version, help."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Annotated

import typer

from compress_onnx.pipeline.cli.console import notes
from compress_onnx.pipeline.cli.help import Overview

_EXIT_CODES = """
**Exit codes**: 0 all gates passed, 1 a gate failed, 2 the request was wrong, 3 nothing could be
compressed, 70 a defect of this program, 130 interrupted.
"""

app = typer.Typer(
    name="compress-onnx",
    cls=Overview,
    epilog=_EXIT_CODES,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"compress-onnx {version('compress-onnx')}")
        raise typer.Exit


@app.callback()
def root(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no notes: results and errors only.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also tell what is decided on the way.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Make ONNX models of transformers smaller and faster, and measure what that costs.

    `compress-onnx analyze model.onnx`

    `compress-onnx optimize model.onnx -c data.npz --max-drop 0.01 -o best.onnx`

    `compress-onnx validate model.onnx best.onnx --inputs heldout.npz`

    `compress-onnx run recipe.yaml`

    **Data files** are `.npz` with one array for each model input, samples along the first axis.
    `NO_COLOR` turns colours off.
    """
    notes.quiet = quiet
    logging.getLogger("compress_onnx").setLevel(logging.INFO if verbose else logging.NOTSET)
