"""``analyze`` says whether compressing a model is worth it."""

from __future__ import annotations

import json
from pathlib import Path

import model_kinds
import numpy as np
import onnx
import pytest
import small_models as small

import compress_onnx
from compress_onnx.pipeline.results import Potential


@pytest.mark.parametrize(
    ("name", "sites", "where"),
    [
        ("cnn", 1, "convolutions"),
        ("lstm", 0, "recurrent layers (LSTM, GRU, RNN)"),
        ("embedding", 1, "embeddings (tables that Gather reads)"),
        ("block", 6, "attention and other products of two activations"),
        ("quantized", 0, "layers that are quantized already"),
        ("tied", 0, "products that are no linear layers"),
    ],
)
def test_every_kind_of_model_has_a_verdict(cli, tmp_path, name, sites, where):
    path = tmp_path / "model.onnx"
    onnx.save(model_kinds.MODELS[name](), path)
    text = cli("analyze", path).out
    assert f"{sites} linear sites" in text
    assert any(line.startswith(where) for line in text.splitlines())
    verdict = text.split("\nverdict: ")[1]
    assert verdict.startswith("not worth it: there are no linear layers to") == (not sites)
    assert ("at most" in text) == bool(sites)


def test_the_time_can_be_left_out(cli, tmp_path):
    onnx.save(model_kinds.cnn(), tmp_path / "model.onnx")
    text = cli("analyze", tmp_path / "model.onnx", "--no-benchmark").out
    assert "at most" not in text
    assert "verdict: not worth it: " in text
    assert "of the weights' bytes are in convolutions" in text


def test_the_figures_can_be_written(cli, files):
    cli("analyze", "model.onnx", "--potential", "potential.json", "--no-benchmark")
    potential = Potential.model_validate_json(Path("potential.json").read_bytes())
    assert potential.worth == "yes"
    assert {row.kind for row in potential.kinds} == {"linear", "elementwise"}
    cli("analyze", "model.onnx", "--potential", "potential.json", "-c", "data.npz")
    rows = json.loads(Path("potential.json").read_text())["kinds"]
    assert all(row["share_of_time"] is not None for row in rows)
    before = small.listing(files)
    cli("analyze", "model.onnx", "--potential", "model.onnx", code=2)
    assert small.listing(files) == before


def test_a_model_that_runs_on_no_made_up_inputs_has_a_verdict(cli, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[b,s] x) => (float[b,8] y) {
        h = Reshape(x, shape)
        y = MatMul(h, w)
    }"""
    proto = onnx.parser.parse_model(text)
    named = {"w": np.ones((13, 8), np.float32), "shape": np.array([-1, 13])}
    for key, array in named.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    onnx.save(proto, tmp_path / "model.onnx")
    said = cli("analyze", tmp_path / "model.onnx")
    assert "note: time was not measured" in said.err
    assert "--calibration brings real inputs" in " ".join(said.err.split())
    assert "verdict: worth it for its size" in said.out


def test_products_that_share_a_reason_are_one_line(cli, tmp_path):
    onnx.save(model_kinds.block(), tmp_path / "model.onnx")
    text = cli("analyze", tmp_path / "model.onnx").out
    lines = [line for line in text.splitlines() if "skipped" in line]
    assert len(lines) == 1
    assert lines[0].startswith("skipped 2 MatMul, first ")


def test_the_api_returns_the_plan_with_the_potential():
    found = compress_onnx.analyze(model_kinds.block())
    assert len(found.sites) == 6
    assert found.potential.worth == "yes"
    assert found.potential.speedup_bound > 1
    assert json.loads(found.model_dump_json())["potential"]["verdict"].startswith("worth it")
    untimed = compress_onnx.analyze(model_kinds.cnn(), timed=False).potential
    assert (untimed.worth, untimed.speedup_bound) == ("no", None)
