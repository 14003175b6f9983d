"""Weights in ``Constant`` nodes are parameters; a model may have none at all."""

from __future__ import annotations

import pytest
import small_models as small
from cli_runner import Cli
from onnx import helper, parser

from compress_onnx.pipeline.files.model_file import load_model, model_size, save_model

TIMED = ("--provider", "cpu", "--iterations", "5", "--warmup", "0", "--loads", "0")


def with_constants(model):
    """The same model with a Constant node for each initializer."""
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    others = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    return model


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    return Cli(capsys, monkeypatch)


def test_constants_count_like_initializers(tmp_path):
    plain = small.save(small.perceptron(), tmp_path / "plain.onnx")
    constant = small.save(with_constants(small.perceptron()), tmp_path / "constant.onnx")
    size = model_size(constant, plain)
    assert size.reference_parameters == size.candidate_parameters > 0


def test_models_of_constants_are_validated_and_timed(cli, tmp_path):
    small.save(with_constants(small.perceptron()), tmp_path / "model.onnx")
    cli("compress", "model.onnx", "-o", "small.onnx")
    for command in (("validate",), ("bench", *TIMED)):
        pair = ("model.onnx", "small.onnx")
        cli(*command, *pair, "--gate", "parameter_ratio<=0.6", "--gate", "parameter_ratio>=0.4")


def test_models_without_parameters_have_no_ratio(cli, tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) {y=Relu(x)}'
    small.save(parser.parse_model(text), tmp_path / "model.onnx")
    for command in (("validate",), ("bench", *TIMED)):
        cli(*command, "model.onnx", "model.onnx", "--gate", "size_ratio<=1")


def test_a_negative_dimension_is_an_open_one(cli, tmp_path):
    model = small.perceptron()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    small.save(model, tmp_path / "model.onnx")
    save_model(load_model(tmp_path / "model.onnx"), tmp_path / "same.onnx")
    small.save_rows(tmp_path / "data.npz")
    for command in (("validate",), ("bench", *TIMED)):
        for data in ((), ("--inputs", "data.npz")):
            cli(*command, "model.onnx", "same.onnx", *data)
    cli("compress", "model.onnx", "-o", "small.onnx", "-c", "data.npz")
