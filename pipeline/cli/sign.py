"""``compress-onnx sign``: put a signature to a bundle's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli import outputs
from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.cli.options import Json
from compress_onnx.pipeline.files.signature import sign_manifest
from compress_onnx.pipeline.report.writer import write_json


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("sign", cls=OneScreen)(sign)


def sign(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle.")],
    key: Annotated[
        Path, typer.Option(help="The private Ed25519 key, as openssl genpkey writes it (PEM).")
    ],
    json_path: Json = None,
) -> None:
    """Sign the manifest of a bundle, after holding it against the files.

    `compress-onnx sign bundles/minilm --key private.pem`

    `compress-onnx check DIR --require-manifest public.pem` then refuses what that key did not sign.
    """
    written = outputs.figures_file(json_path, "signature")
    outputs.check_outputs([written], [folder, key], force=False)
    signature = sign_manifest(folder, key)
    out.print(f"signed: {signature}", markup=False, highlight=False)
    if json_path is not None:
        write_json(json_path, {"signature": str(signature)})
