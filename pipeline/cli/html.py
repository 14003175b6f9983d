"""``--html``: the page of a result, and the command that made it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli.console import note
from compress_onnx.pipeline.report.page import why_no_charts, write_page
from compress_onnx.pipeline.report.page.blocks import Page
from compress_onnx.pipeline.report.tracking import without_credentials

Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page to open.")
]


def command_line() -> str:
    """What the user typed, to be typed again, without the credentials of a URI."""
    return shlex.join(["compress-onnx", *map(without_credentials, sys.argv[1:])])


def write_html(path: Path, page: Page) -> None:
    """Write the page, without charts where they cannot be drawn, and say so.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    reason = why_no_charts()
    if reason is not None:
        note(reason)
    write_page(path, page, pictures=reason is None)
