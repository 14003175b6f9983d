"""The provider of OpenVINO, in an environment of its own, which it needs: it excludes CUDA's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.integers import round_model
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.model_file import save_model

# An environment is installed, which takes its time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
FEATURES = 32


def clean():
    """Without the checkout on the path, which pip and the environment would find there."""
    return {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}


def attempt(*command):
    """Run a command; a test is skipped where it fails."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=clean()
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        pytest.skip(f"no environment with onnxruntime-openvino: {reason}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``run("bench", …, code=1)`` in an environment with the project and its extra openvino."""
    folder = tmp_path_factory.mktemp("openvino")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    attempt(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    attempt(python, "-m", "pip", "install", "--quiet", f"{wheel}[openvino]")

    def run(*arguments, code=0):
        command = [python, "-m", "compress_onnx", *arguments]
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=clean(),
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, and every form of it that OpenVINO is to run."""
    folder = tmp_path_factory.mktemp("models")
    original = saved(folder, two_layers((FEATURES, 64, FEATURES), activation="Relu")[0])
    data = samples(FEATURES, 100)
    np.savez(folder / "data.npz", **samples(FEATURES, 20, seed=3).inputs)
    learned = learn(original, data)
    forms = {
        "low rank": CompressionSpec(params=0.9),
        "neurons": CompressionSpec(method=MethodSpec(name="neurons"), params=0.9),
    }
    found = {name: learned.compress(request).model for name, request in forms.items()}
    found["QDQ"] = round_model(original, data, form="qdq").model
    for name, model in found.items():
        save_model(model, folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize("form", ["model", "low rank", "neurons", "QDQ"])
def test_every_form_runs_and_is_timed(run, models, tmp_path, form):
    pair = models / "model.onnx", models / f"{form}.onnx"
    data = models / "data.npz"
    on = ("--provider", "openvino")
    run("validate", *pair, "--inputs", data, "--gate", "min_output_cosine>=0.8", *on)
    run("bench", *pair, "--iterations", 5, "--json", tmp_path / "bench.json", *on)
    (timed,) = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    assert timed["provider"] == "openvino"
    assert timed["providers"][0] == "OpenVINOExecutionProvider"


def test_a_damaged_model_fails(run, models, tmp_path):
    other = saved(tmp_path, two_layers((FEATURES, 64, FEATURES), activation="Relu", seed=1)[0])
    pair = models / "model.onnx", other
    gate = ("--gate", "min_output_cosine>=0.8", "--provider", "openvino")
    run("validate", *pair, "--inputs", models / "data.npz", *gate, code=1)


def test_a_model_is_optimized_for_it(run, models, tmp_path):
    np.savez(tmp_path / "calibration.npz", **samples(FEATURES, 100).inputs)
    output, report = tmp_path / "small.onnx", tmp_path / "report.json"
    goal = ("-c", tmp_path / "calibration.npz", "--max-drop", 0.5, "-o", output)
    run("optimize", models / "model.onnx", *goal, "--report", report, "--provider", "openvino")
    assert json.loads(report.read_text())["provider"] == "openvino"
    assert output.is_file()
