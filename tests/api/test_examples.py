"""What the README and the docstrings show runs as it stands there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import small_models as small

import compress_onnx

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.save(small.encoder(), tmp_path / "model.onnx")
    np.savez("data.npz", **small.sentences(60))
    np.savez("heldout.npz", **small.sentences(24, seed=2))


def test_the_readme_has_examples():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=["the API", "the passes"])
def test_blocks_of_the_readme(block, capsys):
    exec(compile(block, str(README), "exec"), {})  # noqa: S102 - our own README
    if "learn(" in block:
        said = capsys.readouterr().out
        assert said.count("sites factored") == 2
        assert "relative L2" in said
        assert "cpu: p50" in said
        assert Path("small.onnx").stat().st_size < Path("model.onnx").stat().st_size


def test_docstrings(capsys):
    assert compress_onnx.__doc__ is not None
    found = doctest.DocTestFinder(recurse=False).find(compress_onnx, "compress_onnx")
    examples = [e for test in found for e in test.examples]
    assert examples
    names: dict[str, object] = {}
    for example in examples:
        exec(example.source, names)  # noqa: S102 - our own docstring
    assert Path("small.onnx").exists()
