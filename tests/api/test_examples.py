"""What the docstrings show runs as it stands there; README and pages: tests/docs."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import small_models as small

import compress_onnx


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.save(small.encoder(), tmp_path / "model.onnx")
    np.savez("data.npz", **small.sentences(60))
    np.savez("heldout.npz", **small.sentences(24, seed=2))


def test_docstrings(capsys):
    assert compress_onnx.__doc__ is not None
    found = doctest.DocTestFinder(recurse=False).find(compress_onnx, "compress_onnx")
    examples = [e for test in found for e in test.examples]
    assert examples
    names: dict[str, object] = {}
    for example in examples:
        exec(example.source, names)  # noqa: S102 - our own docstring
    assert Path("small.onnx").exists()
