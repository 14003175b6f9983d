"""Steps in coordinates in which the inputs of a layer are white."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch
from graphs import model as graph
from graphs import weights

from compress_onnx.graph_passes.rewriting.trainable import array_of
from compress_onnx.pipeline.recover import whitening as module
from compress_onnx.pipeline.recover.optimizer import Adam
from compress_onnx.pipeline.recover.whitening import DAMPING, Whitening, whitenings
from compress_onnx.pipeline.runtime.samples import Samples

WIDTH = 6
TEXT = """g (float[B,T,6] x) => (float[B,T,4] y) {
    h = MatMul(x, w1)  a = Add(h, b1)  t = Tanh(a)  s = MatMul(t, twice)  u = MatMul(s, twice)
    y = MatMul(u, w2)
}"""
SHAPES = {"w1": (WIDTH, 5), "b1": (5,), "twice": (5, 5), "w2": (5, 4)}


def correlated(count=400, seed=0):
    """``[count, T, 6]`` inputs that hardly vary in most directions; the last position is noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3, WIDTH)) * 10.0 ** -np.arange(WIDTH)
    x = x @ np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    x[:, 2] = 100 * rng.normal(size=(count, WIDTH))
    return x.astype(np.float32)


def found(text=TEXT, shapes=SHAPES, x=None, folder=None):
    model = ir.from_proto(graph(text, weights(**shapes)))
    trained = {v: array_of(v) for v in model.graph.initializers.values()}
    x = correlated() if x is None else x
    mask = np.broadcast_to(np.arange(3) < 2, (len(x), 3))
    inputs = Samples({"x": x, "mask": mask.astype(np.int64)}, "mask")
    batches = [batch for batch in inputs.batches(100) if batch.feeds.pop("mask") is not None]
    return whitenings(model, trained, batches, folder)


def test_inputs_are_white_in_the_basis(tmp_path):
    made = found(folder=tmp_path)
    x = correlated()[:, :2].reshape(-1, WIDTH).astype(np.float64)
    moment = x.T @ x
    moment *= WIDTH / np.trace(moment)
    basis = made["w1"].basis.numpy().astype(np.float64)
    np.testing.assert_allclose(basis, basis.T, atol=1e-5)
    damped = basis @ (moment + DAMPING * np.eye(WIDTH)) @ basis
    np.testing.assert_allclose(damped, np.eye(WIDTH), atol=1e-3)


def test_only_matrices_that_one_product_reads_have_one(tmp_path, monkeypatch):
    assert found(folder=tmp_path).keys() == {"w1", "w2"}
    monkeypatch.setattr(module, "WIDEST", 5)
    assert found(folder=tmp_path).keys() == {"w2"}


def test_a_weight_may_be_stored_either_way_round(tmp_path):
    x = np.random.default_rng(3).normal(size=(400, WIDTH)) * np.arange(1, 7)
    made = []
    for turned, shape in ((0, (WIDTH, 4)), (1, (4, WIDTH))):
        text = f"g (float[B,6] x) => (float[B,4] y) {{ y = Gemm<transB = {turned}>(x, w) }}"
        model = ir.from_proto(graph(text, weights(w=shape)))
        (value,) = model.graph.initializers.values()
        batches = list(Samples({"x": x.astype(np.float32)}).batches(100))
        made.append(whitenings(model, {value: array_of(value)}, batches, tmp_path)["w"])
    np.testing.assert_allclose(made[0].basis, made[1].basis, rtol=1e-5)
    step = torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(made[0].apply(step), made[1].apply(step.T).T, rtol=1e-4)


def test_steps_reach_directions_in_which_inputs_hardly_vary():
    """Least squares from the same start, with the same steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 32)) * 0.9 ** np.arange(32)
    x = x @ np.linalg.qr(rng.normal(size=(32, 32)))[0]
    right = rng.normal(size=(32, 8))
    start = right + 0.1 * rng.normal(size=right.shape)
    basis, inverse = module._roots(x.T @ x * (32 / np.sum(x * x)))
    losses = []
    for white in (False, True):
        array = torch.tensor(start, dtype=torch.float32)
        scale = float(np.sqrt(np.mean((inverse @ start) ** 2)))
        adam = Adam(
            {"w": array}, {"w": Whitening(torch.from_numpy(basis), scale, 0)} if white else None
        )
        for step in range(40):
            gradient = x.T @ (x @ (array.numpy() - right))
            adam.step({"w": torch.tensor(gradient, dtype=torch.float32)}, 0.03 * (1 - step / 40))
        losses.append(np.sum((x @ (array.numpy() - right)) ** 2))
    assert losses[1] < 0.6 * losses[0]


def test_a_model_stays_as_it_was(tmp_path):
    proto = graph(TEXT, weights(**SHAPES))
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    batches = list(Samples({"x": correlated(20)}).batches(10))
    trained = {v: array_of(v) for v in model.graph.initializers.values()}
    whitenings(model, trained, batches, tmp_path)
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(model))
