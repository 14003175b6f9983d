"""Small ONNX files and data for them; weights have falling spectra, so that low rank fits them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, HIDDEN, CLASSES = 48, 64, 24
VOCABULARY, WIDTH = 50, 32
SITES = ("encoder.fc1", "encoder.attention.query", "head")


def weight(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """``[rows, columns]`` a random matrix whose singular values halve every few ranks."""
    left, _ = np.linalg.qr(rng.normal(size=(rows, min(rows, columns))))
    right, _ = np.linalg.qr(rng.normal(size=(columns, min(rows, columns))))
    return (3 * left * 0.85 ** np.arange(left.shape[1])) @ right.T


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """A checked model of opset 17; floating-point weights become float32."""
    initializers = [
        numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, n)
        for n, array in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def perceptron(seed: int = 0) -> onnx.ModelProto:
    """``x [b, 48] -> y [b, 24]`` through the three sites of :data:`SITES`."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], name="/encoder/fc1/MatMul"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], name="/encoder/fc1/Add"),
        helper.make_node("Relu", ["a1"], ["r1"], name="/encoder/Relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], name="/encoder/attention/query/MatMul"),
        helper.make_node("Add", ["b2", "m2"], ["a2"], name="/encoder/attention/query/Add"),
        helper.make_node("Gemm", ["a2", "w3", "b3"], ["y"], name="/head/Gemm", transB=1),
    ]
    weights = {
        "w1": weight(rng, FEATURES, HIDDEN),
        "b1": rng.normal(size=HIDDEN),
        "w2": weight(rng, HIDDEN, HIDDEN),
        "b2": rng.normal(size=HIDDEN),
        "w3": weight(rng, CLASSES, HIDDEN),
        "b3": rng.normal(size=CLASSES),
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", FEATURES])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", CLASSES])
    return model_of(nodes, [x], [y], weights)


def encoder(garbage: float = 0.0, seed: int = 0) -> onnx.ModelProto:
    """A token encoder with query and key on one input, whose padding adds ``garbage``."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "real"], ["padding"]),
        helper.make_node("Unsqueeze", ["padding", "axes"], ["per_position"]),
        helper.make_node("Mul", ["per_position", "garbage"], ["noise"]),
        helper.make_node("Add", ["embedded", "noise"], ["h"]),
        helper.make_node("MatMul", ["h", "wq"], ["q"], name="/layer.0/query/MatMul"),
        helper.make_node("MatMul", ["h", "wk"], ["k"], name="/layer.0/key/MatMul"),
        helper.make_node("Mul", ["q", "k"], ["hidden"]),
        helper.make_node("ReduceMean", ["h"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "wp"], ["pooler"], name="/pooler/MatMul"),
    ]
    weights = {
        "table": rng.normal(size=(VOCABULARY, WIDTH)),
        "one": np.ones(1),
        "axes": np.array([2]),
        "garbage": np.full(1, garbage),
        "wq": weight(rng, WIDTH, WIDTH),
        "wk": weight(rng, WIDTH, WIDTH),
        "wp": weight(rng, WIDTH, WIDTH),
    }
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
        for name in ("input_ids", "attention_mask")
    )
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["b", "s", WIDTH])
    pooler = helper.make_tensor_value_info("pooler", TensorProto.FLOAT, ["b", WIDTH])
    return model_of(nodes, [ids, mask], [hidden, pooler], weights)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write ``model`` with its weights inside."""
    path.write_bytes(model.SerializeToString())
    return path


def save_external(model: onnx.ModelProto, path: Path, location: str | None = None) -> Path:
    """Write ``model`` with every weight in one data file beside it (or at ``location``)."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(
        copy,
        path,
        save_as_external_data=True,
        location=location or f"{path.name}.data",
        size_threshold=0,
    )
    return path


def save_rows(path: Path, count: int = 40, seed: int = 1) -> Path:
    """Inputs of :func:`perceptron` as ``.npz``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES)) * np.linspace(0.1, 2, FEATURES) + 0.5
    np.savez(path, x=x.astype(np.float32))
    return path


def sentences(count: int = 24, length: int = 12, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs of :func:`encoder`, padded."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(2, length + 1, count)[:, None]
    ids = rng.integers(1, VOCABULARY, (count, length)) * mask
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
