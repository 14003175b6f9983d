"""Signed manifests: what the holder of the key signed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.files.bundle import SIGNATURE_NAME, verify_manifest, write_manifest
from compress_onnx.pipeline.files.signature import require_signature, sign_manifest

pytest.importorskip("cryptography", reason="needs the deploy extra")


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key, as openssl writes them."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    plain = s.NoEncryption()
    secret.write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, plain))
    kind = s.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(s.Encoding.PEM, kind))
    return secret, public


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    write_manifest(folder)
    return folder


def test_what_was_signed_is_taken(tmp_path, bundle):
    secret, public = keys(tmp_path, "ours")
    assert sign_manifest(bundle, secret) == bundle / SIGNATURE_NAME
    require_signature(bundle, public)
    verify_manifest(bundle)  # the signature is no stray file


def test_another_key_a_changed_file_and_another_manifest(tmp_path, bundle):
    secret, public = keys(tmp_path, "ours")
    _, theirs = keys(tmp_path, "theirs")
    sign_manifest(bundle, secret)
    with pytest.raises(ModelFileError, match="not signed with the key"):
        require_signature(bundle, theirs)
    (bundle / "model.onnx").write_bytes(b"poison!")
    with pytest.raises(ModelFileError, match="has changed"):
        require_signature(bundle, public)
    write_manifest(bundle)  # whoever can write the folder makes it whole again, and cannot sign
    with pytest.raises(ModelFileError, match="not signed with the key"):
        require_signature(bundle, public)


@pytest.mark.parametrize("content", [None, b"", b"???", b"AAAA"])
def test_no_signature(tmp_path, bundle, content):
    _, public = keys(tmp_path, "ours")
    if content is not None:
        (bundle / SIGNATURE_NAME).write_bytes(content)
    with pytest.raises(ModelFileError, match="signed"):
        require_signature(bundle, public)


def test_what_is_no_key(tmp_path, bundle):
    secret, public = keys(tmp_path, "ours")
    for wrong in (public, bundle / "model.onnx", tmp_path / "none.pem"):
        with pytest.raises(RequestError, match="key"):
            sign_manifest(bundle, wrong)
    for wrong in (secret, bundle / "model.onnx", tmp_path / "none.pem"):
        with pytest.raises(RequestError, match="key"):
            require_signature(bundle, wrong)
    assert not (bundle / SIGNATURE_NAME).exists()
