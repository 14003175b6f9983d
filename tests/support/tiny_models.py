"""Small ONNX models with known answers."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.pipeline.runtime.samples import Samples

BATCH, LENGTH = 4, 3


def samples(features=6, count=8, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, LENGTH, features))
    return Samples({"x": x.astype(np.float32)})


def two_layers(features=(6, 8, 5), *, activation="Tanh", seed=0):
    """``y = act(x·W1 + b1)·W2 + b2`` on ``x [batch, length, K]``; returns (proto, weights)."""
    rng = np.random.default_rng(seed)
    k, h, n = features
    weights = {
        "first.weight": rng.standard_normal((k, h)).astype(np.float32) / 2,
        "first.bias": rng.standard_normal(h).astype(np.float32),
        "second.weight": rng.standard_normal((h, n)).astype(np.float32) / 2,
        "second.bias": rng.standard_normal(n).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first.weight"], ["m1"], "first"),
        helper.make_node("Add", ["m1", "first.bias"], ["a1"]),
        helper.make_node(activation, ["a1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "second.weight"], ["m2"], "second"),
        helper.make_node("Add", ["m2", "second.bias"], ["y"]),
    ]
    return _model(nodes, ["batch", "length", k], ["batch", "length", n], weights), weights


def _model(nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    return model


def saved(tmp_path, proto):
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path
