"""Graphs that PyTorch runs: the numbers of ONNX Runtime, on strangers' graphs and real exports."""

from __future__ import annotations

import graph_collection
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graphs import model as graph
from graphs import weights
from stranger_graphs import STRANGERS

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.pipeline.evidence.adjoint import in_single, prepared
from compress_onnx.pipeline.recover.torch_graph import TorchGraph
from compress_onnx.pipeline.recover.torch_operators import FAKE_QUANTIZE, OWN_DOMAIN
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

ONE_THREAD = SessionSpec(threads=1)
WITHOUT = {"multi-head-attention", "rotary-embedding", "sequence"}
"""Operators of ONNX Runtime's own, and sequences: no gradient."""
WITHOUT_MATRICES = {"constant-weights-11", "constant-weights-12", "reshape-through-shape-11"}
"""Weights are Constant nodes here."""


def both(proto, feeds):
    """What ONNX Runtime and PyTorch compute, and the gradients of all matrices."""
    proto = prepared(onnx.ModelProto.FromString(proto.SerializeToString()))
    inputs = {value.name for value in proto.graph.input}
    feeds = {name: array for name, array in in_single(feeds).items() if name in inputs}
    right = run(open_session(proto.SerializeToString(), ONE_THREAD), feeds)
    matrices = {
        tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)).requires_grad_()
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    given = {name: torch.tensor(np.asarray(array)) for name, array in feeds.items()}
    ours = TorchGraph(proto)({**given, **matrices}, list(right))
    floats = [value for value in ours.values() if value.requires_grad]
    found = {}
    if floats:
        loss = torch.stack([value.square().sum() for value in floats]).sum()
        gradients = torch.autograd.grad(loss, list(matrices.values()), allow_unused=True)
        found = {name: g for name, g in zip(matrices, gradients, strict=True) if g is not None}
    return right, {name: value.detach().numpy() for name, value in ours.items()}, found


def assert_same(right, ours):
    assert ours.keys() == right.keys()
    for name, value in right.items():
        assert ours[name].shape == value.shape, name
        if value.size:
            scale = max(float(np.abs(value).max()), 1e-6)
            assert float(np.abs(ours[name] - value).max()) < 1e-4 * scale, name


@pytest.mark.parametrize("name", [name for name in STRANGERS if name not in WITHOUT])
def test_strangers(name):
    stranger = STRANGERS[name]
    for count in (3, 2):
        right, ours, gradients = both(stranger.build(), dict(stranger.samples(count).inputs))
        assert_same(right, ours)
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        assert gradients or name in WITHOUT_MATRICES | {"classes-only"}


@pytest.mark.slow
@pytest.mark.xdist_group("graph collection")
def test_the_collection():
    seen = 0
    for found in graph_collection.collection():
        if found.error:
            continue
        right, ours, gradients = both(onnx.load(found.path), found.feeds()[-1])
        assert_same(right, ours)
        seen += bool(gradients)  # what is quantized has no matrices of floats
    assert seen > 60


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_what_has_no_gradient_is_named(name):
    stranger = STRANGERS[name]
    with pytest.raises(NotDifferentiableError, match=r"no gradient of this graph .*leave recovery"):
        both(stranger.build(), dict(stranger.samples(3).inputs))


def test_what_no_gradient_goes_through_may_be_any_operator():
    text = """g (float[B,4] x) => (float[B,3] y) {
        h = Hardmax(x)
        y = MatMul(h, w)
    }"""
    x = weights(1, x=(5, 4))
    right, ours, gradients = both(graph(text, weights(w=(4, 3))), x)
    assert_same(right, ours)
    assert gradients["w"].shape == (4, 3)


@pytest.mark.parametrize("axis", range(-3, 4))
@pytest.mark.parametrize("rows", [0, 2])
def test_flatten_at_each_axis(axis, rows):
    text = f"""g (float[B,4,5] x) => (float[M,N] y) {{
        y = Flatten<axis = {axis}>(x)
    }}"""
    right, ours, _ = both(graph(text, {}), weights(1, x=(rows, 4, 5)))
    assert_same(right, ours)


@pytest.mark.parametrize(
    ("direction", "count"), [("forward", 1), ("reverse", 1), ("bidirectional", 2)]
)
def test_an_lstm_in_each_direction(direction, count):
    text = f"""g (float[T,B,4] x) => (float[T,{count},B,3] y) {{
        y, h, c = LSTM<hidden_size = 3, direction = "{direction}">(x, w, r, b)
    }}"""
    numbers = weights(w=(count, 12, 4), r=(count, 12, 3), b=(count, 24))
    right, ours, gradients = both(graph(text, numbers), weights(1, x=(5, 2, 4)))
    assert_same(right, ours)
    assert {"w", "r"} <= gradients.keys()


@pytest.mark.parametrize(
    "resize",
    [
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        'mode = "linear", coordinate_transformation_mode = "half_pixel"',
        'mode = "linear", coordinate_transformation_mode = "align_corners"',
    ],
)
def test_images_of_another_size(resize):
    text = f"""g (float[B,2,4,5] x) => (float[B,2,8,10] y) {{
        m = MatMul(x, w)
        y = Resize<{resize}>(m, , twice)
    }}"""
    numbers = {**weights(w=(5, 5)), "twice": np.array([1, 1, 2, 2], np.float32)}
    right, ours, _ = both(graph(text, numbers), weights(1, x=(2, 2, 4, 5)))
    assert_same(right, ours)


def test_products_of_bfloat16_are_near():
    text = "g (float[B,64] x) => (float[B,32] y) { m = MatMul(x, w)  y = Gemm(m, v, b) }"
    numbers = weights(w=(64, 48), v=(48, 32), b=(32,))
    x = {"x": torch.from_numpy(weights(1, x=(20, 64))["x"])}
    exact, half = (TorchGraph(graph(text, numbers))(x, ["y"], half)["y"] for half in (False, True))
    error = float((half - exact).norm() / exact.norm())
    assert half.dtype == torch.float32
    assert 1e-4 < error < 1e-2


def test_rounding_is_that_of_onnx_runtime_and_its_gradient_that_of_what_is_inside():
    text = """g (float[B,6] x) => (float[B,6] y) {
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z)
    }"""
    numbers = {"s": np.array(0.01, np.float32), "z": np.array(100, np.uint8)}
    proto = graph(text, numbers)
    x = weights(1, x=(50, 6))["x"] * 3
    right = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    numbers_of_x = np.rint(x / np.float32(0.01)) + 100
    inside = (numbers_of_x >= 0) & (numbers_of_x <= 255)
    assert 0 < inside.mean() < 1
    both_in_one = graph("g (float[B,6] x) => (float[B,6] y) { y = Identity(x) }", numbers)
    both_in_one.graph.node[0].CopyFrom(
        onnx.helper.make_node(FAKE_QUANTIZE, ["x", "s", "z"], ["y"], domain=OWN_DOMAIN)
    )
    for written in (proto, both_in_one):
        leaf = torch.tensor(x).requires_grad_()
        y = TorchGraph(written)({"x": leaf}, ["y"])["y"]
        np.testing.assert_allclose(y.detach().numpy(), right, atol=1e-6)
        (gradient,) = torch.autograd.grad(y.sum(), [leaf])
        np.testing.assert_allclose(gradient.numpy(), inside, atol=1e-6)
