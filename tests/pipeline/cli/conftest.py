"""The command line in this process, and a folder with a model and data."""

from __future__ import annotations

import pytest
import small_models as small
from cli_runner import Cli


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "200")
    return Cli(capsys, monkeypatch)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The folder with a model and data for it; it is also the current folder."""
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path
