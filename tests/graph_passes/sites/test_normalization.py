"""What makes a value: normalizations as operators and written out, and what is none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import canonical, model, sites_of, weights
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.naming import kind_of
from compress_onnx.graph_passes.sites.normalization import origin_of

UNITS = {"w": (8, 6), "scale": (8,), "shift": (8,)}
CONSTANTS = {
    "two": np.float32(2),
    "one": np.float32(1),
    "epsilon": np.float32(1e-5),
    "axes": np.array([-1]),
    "first": np.array(0),
    "shape": np.array([-1, 8]),
}
VARIANCE = """
    mean = ReduceMean<axes = [-1]>(x)
    d = Sub(x, mean)
    square = Pow(d, two)
    variance = ReduceMean<axes = [-1]>(square)
    v = Add(variance, epsilon)
    deviation = Sqrt(v)
"""
MEAN_SQUARE = """
    square = Mul(x, x)
    m = ReduceMean<axes = [-1]>(square)
    v = Add(m, epsilon)
    root = Sqrt(v)
"""


def origin(body: str, opset: int = 17):
    """Of the input ``h`` of the one site of a graph with ``body``."""
    text = f"g (float[B,T,8] x) => (float[B,T,6] y) {{ {body} y = MatMul(h, w) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    named = {**weights(**UNITS), **CONSTANTS}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in named.items()
        if name in read
    )
    (site,) = find_sites(canonical(proto)).sites
    return origin_of(site.input)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("h = LayerNormalization(x, scale, shift)", "LayerNormalization"),
        ("n = LayerNormalization(x, scale, shift) h = Identity(n)", "LayerNormalization"),
        (f"{VARIANCE} h = Div(d, deviation)", "LayerNormalization"),
        (
            f"{VARIANCE} n = Div(d, deviation) s = Mul(n, scale) h = Add(s, shift)",
            "LayerNormalization",
        ),
        (f"{VARIANCE} i = Reciprocal(deviation) h = Mul(i, d)", "LayerNormalization"),
        (f"{VARIANCE} i = Div(one, deviation) h = Mul(d, i)", "LayerNormalization"),
        (f"{MEAN_SQUARE} n = Div(x, root) h = Mul(scale, n)", "RMSNormalization"),
        (f"{MEAN_SQUARE} i = Reciprocal(root) n = Mul(x, i) h = Mul(scale, n)", "RMSNormalization"),
    ],
)
def test_normalizations_are_recognized(body, kind):
    assert origin(body) == (kind, True)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("h = Relu(x)", "Relu"),
        ("h = Identity(x)", "input"),
        ("n = LayerNormalization(x, scale, shift) h = Relu(n)", "Relu"),
        ("n = LayerNormalization(x, scale, shift) h = Add(n, x)", "Add"),
        (f"{VARIANCE} h = Mul(d, deviation)", "Mul"),
        ("square = Pow(x, two) root = Sqrt(square) h = Div(x, root)", "Div"),
        ("m = ReduceMean<axes = [-1]>(x) root = Sqrt(m) h = Div(x, root)", "Div"),
        ("s = Softmax(x) h = Mul(s, scale)", "Softmax"),
    ],
)
def test_what_only_looks_like_one_is_none(body, kind):
    assert origin(body) == (kind, False)


def test_the_choice_of_a_position_keeps_the_units():
    proto = model(
        """g (float[B,T,8] x) => (float[B,6] y) {
            n = LayerNormalization(x, scale, shift)
            h = Gather<axis = 1>(n, first)
            y = MatMul(h, w)
        }""",
        {**weights(**UNITS), "first": np.array(0)},
    )
    (site,) = sites_of(proto).sites
    assert origin_of(site.input) == ("LayerNormalization", True)


def test_an_embedding_is_made_by_its_gather():
    proto = model(
        "g (int64[B,T] x) => (float[B,T,6] y) { h = Gather(table, x) y = MatMul(h, w) }",
        weights(w=(8, 6), table=(5, 8)),
    )
    (site,) = sites_of(proto).sites
    assert origin_of(site.input) == ("Gather", False)


def test_operators_of_onnx_runtime_are_recognized():
    nodes = [
        helper.make_node(
            "SkipLayerNormalization", ["x", "x", "scale"], ["h"], domain="com.microsoft"
        ),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", 6])],
        [
            numpy_helper.from_array(array, name)
            for name, array in weights(w=(8, 6), scale=(8,)).items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    (site,) = sites_of(helper.make_model(graph, opset_imports=opsets, ir_version=8)).sites
    assert origin_of(site.input) == ("SkipLayerNormalization", True)


@pytest.mark.parametrize(
    ("path", "kind", "layer"),
    [
        ("encoder.layer.11.attention.query", "encoder.layer.*.attention.query", 11),
        ("decoder.block.0.layer.1.o", "decoder.block.*.layer.1.o", 0),
        ("h_3.mlp", "h_*.mlp", 3),
        ("encoder.fc1", "encoder.fc1", None),
        ("classifier", "classifier", None),
    ],
)
def test_kinds_are_the_same_in_every_layer(path, kind, layer):
    assert kind_of(path) == (kind, layer)
