"""ONNX Runtime is installed once, or a command says so in one line before it imports anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.runtime import distribution
from compress_onnx.pipeline.runtime.distribution import providing_distributions, require_one_runtime


def install(folder, name, module):
    """What pip leaves of a distribution, as far as its metadata goes."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    return folder


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only folder in which distributions are looked for."""
    found = distribution.distributions
    monkeypatch.setattr(distribution, "distributions", lambda: found(path=[str(tmp_path)]))
    return tmp_path


def test_here_there_is_one():
    require_one_runtime()
    assert len(providing_distributions()) == 1


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu", "ort-of-our-own"])
def test_one_is_enough_whichever_it_is(site, name):
    install(site, name, "onnxruntime")
    install(site, "onnxruntime-extensions", "onnxruntime_extensions")
    require_one_runtime()
    assert providing_distributions() == [name]


def test_several_overwrite_each_other(site):
    install(site, "onnxruntime", "onnxruntime")
    install(site, "onnxruntime-gpu", "onnxruntime")
    with pytest.raises(MissingDependencyError, match="onnxruntime and onnxruntime-gpu are") as none:
        require_one_runtime()
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(none.value)


def test_none_says_what_to_install(site, monkeypatch):
    require_one_runtime()  # importable, though no distribution in this folder says so
    monkeypatch.setattr(distribution, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"compress-onnx\[cpu\]"):
        require_one_runtime()


def test_a_command_says_it_before_it_imports_onnx_runtime(tmp_path):
    install(tmp_path, "onnxruntime", "onnxruntime")
    install(tmp_path, "onnxruntime-gpu", "onnxruntime")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise SystemExit('imported')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "compress_onnx", "--version"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: onnxruntime and onnxruntime-gpu are installed")
