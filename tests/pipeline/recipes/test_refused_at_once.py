"""What needs no run to be seen as wrong is refused before anything is exported or measured."""

from __future__ import annotations

import numpy as np
import pytest
import small_models as small
from cli_runner import Cli, error_line

from compress_onnx.pipeline.recipes import single

RECIPE = """
name: small
source: {{model: model.onnx}}
calibration: {{kind: npz, path: data.npz}}
validation: {{kind: npz, path: data.npz}}
compression: {{method: {{name: svd}}}}
benchmark: null
{more}
"""


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    small.save(small.perceptron(), tmp_path / "model.onnx")
    small.save_rows(tmp_path / "data.npz")
    return Cli(capsys, monkeypatch)


@pytest.mark.parametrize("command", ["validate", "bench"])
def test_a_mistyped_gate_names_what_there_is(cli, command, monkeypatch):
    monkeypatch.setattr("compress_onnx.pipeline.runtime.session.ort.InferenceSession", None)
    said = error_line(cli(command, "model.onnx", "model.onnx", "--gate", "size_ration<=1", code=2))
    assert "'size_ration'" in said
    assert "did you mean 'size_ratio'?" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("gates: [{quantity: cosin, max: 1}]", "'cosin', which is not measured here"),
        ("gates: [{quantity: output.z.cosine, min: 1}]", "'output.z.cosine'"),
        ("metric: {kind: accuracy}", "needs labels"),
        ("metric: {kind: embedding, output: z, pooling: none}", "'z' is no output"),
    ],
)
def test_a_recipe_that_cannot_work_stops_before_calibration(cli, tmp_path, monkeypatch, more, said):
    def never(*_args, **_kwargs):
        raise AssertionError("calibrated")

    monkeypatch.setattr(single, "learn", never)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(more=more))
    assert said in error_line(cli("run", "recipe.yaml", "-o", "out", code=2))
    assert not (tmp_path / "out").exists()
    assert np.load(tmp_path / "data.npz")
