"""The wheel: built from the checkout, it runs outside of it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import small_models as small

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert built.returncode == 0, built.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_it_holds_the_packages_and_their_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())

    inner = {name.removeprefix("compress_onnx/") for name in names}
    assert {"py.typed", "pipeline/py.typed", "graph_passes/py.typed"} <= inner
    assert any(name.startswith("pipeline/report/") and name.endswith(".jinja") for name in inner)
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"compress_onnx"}


def test_it_runs_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # a pure wheel is ready to import as it is
    small.save(small.perceptron(), tmp_path / "model.onnx")
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=environment,
        )
        return done.stdout

    where = run(
        "-c",
        "from compress_onnx import graph_passes, pipeline\n"
        "print(pipeline.__file__, graph_passes.__file__)",
    )
    assert all(str(site) in path for path in where.split())
    run(
        "-m",
        "compress_onnx.pipeline.cli",
        "compress",
        "model.onnx",
        "-o",
        "small.onnx",
        "--method",
        "svd",
    )
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
