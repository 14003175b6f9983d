"""Signed manifests: who made a bundle, beside that it is whole.

``manifest.json.sig`` is the Ed25519 signature (RFC 8032) of the bytes of ``manifest.json``, in
base64. The manifest has the SHA-256 of every other file, so that one signature stands for all.
Keys are PEM files, as ``openssl genpkey -algorithm ed25519`` writes them.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from compress_onnx.graph_passes.errors import MissingDependencyError, ModelFileError, RequestError
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.bundle import MANIFEST_NAME, SIGNATURE_NAME, verify_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )


def sign_manifest(folder: Path, key: Path) -> Path:
    """Sign the manifest of ``folder``, which must hold, with the private key in ``key``.

    Returns:
        The signature's file.

    Raises:
        ModelFileError: the bundle is not as its manifest says.
        RequestError: the key is none.
        OutputError: the signature cannot be written.
        MissingDependencyError: the package cryptography is not installed.
    """
    private = _private_key(key)
    verify_manifest(folder)
    signature = private.sign((folder / MANIFEST_NAME).read_bytes())
    path = folder / SIGNATURE_NAME
    with atomic_file(path) as temporary:
        temporary.write_bytes(base64.b64encode(signature) + b"\n")
    return path


def require_signature(folder: Path, key: Path) -> None:
    """Check that ``folder`` is as its manifest says, and that the holder of ``key`` signed that.

    Args:
        folder: a bundle.
        key: the file of the public key.

    Raises:
        ModelFileError: the bundle is not whole, not signed, or signed by somebody else.
        RequestError: the key is none.
        MissingDependencyError: the package cryptography is not installed.
    """
    public = _public_key(key)
    verify_manifest(folder)
    try:
        signature = base64.b64decode((folder / SIGNATURE_NAME).read_bytes().strip(), validate=True)
    except (OSError, binascii.Error) as error:
        raise ModelFileError(
            f"the bundle {folder} has no {SIGNATURE_NAME} that can be read: have it signed, with "
            "compress-onnx sign"
        ) from error
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, (folder / MANIFEST_NAME).read_bytes())
    except InvalidSignature as error:
        raise ModelFileError(
            f"the bundle {folder} was not signed with the key of {key}: get it from whom you trust"
        ) from error


def _private_key(path: Path) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (TypeError, ValueError) as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read the key {path}: {error.strerror}") from error


def _no_key(path: Path, kind: str) -> RequestError:
    return RequestError(
        f"{path} is no {kind} Ed25519 key in PEM without a password: make one with openssl genpkey "
        "-algorithm ed25519"
    )


def _require_cryptography() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'signatures need cryptography: pip install "compress-onnx[deploy]"'
        ) from error
