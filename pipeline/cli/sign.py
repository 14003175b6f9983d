"""``compress-onnx sign``: put a signature to a bundle's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_onnx.pipeline.cli.console import out
from compress_onnx.pipeline.cli.help import OneScreen
from compress_onnx.pipeline.files.signature import sign_manifest


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("sign", cls=OneScreen)(sign)


def sign(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle.")],
    key: Annotated[
        Path, typer.Option(help="The private Ed25519 key, as openssl genpkey writes it (PEM).")
    ],
) -> None:
    """Sign the manifest of a bundle, after holding it against the files.

    `compress-onnx sign bundles/minilm --key private.pem`

    `compress-onnx check DIR --require-manifest public.pem` then refuses what that key did not sign.
    """
    out.print(f"signed: {sign_manifest(folder, key)}", markup=False, highlight=False)
