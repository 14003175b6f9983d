"""A whole model of integers: what would spoil their scale is dealt with, and nothing else."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import model, operators, weights

from compress_onnx.pipeline.compress.integers import RoundedModel, round_model
from compress_onnx.pipeline.files import model_file
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

K = 32
TEXT = f"""g (float[B,T,{K}] x) => (float[B,T,{K}] y) {{
    n = LayerNormalization(x, s, b) m = MatMul(n, w) y = Add(n, m) }}"""


def encoder(path: Path, far: float) -> Path:
    """A norm and a layer behind it; one unit of the norm reaches ``far`` times as far."""
    numbers = weights(s=(K,), b=(K,), w=(K, K))
    numbers["s"] = np.ones(K, np.float32)
    numbers["s"][3] = far
    onnx.save(model(TEXT, numbers), path)
    return path


def data(seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples({"x": rng.standard_normal((64, 5, K)).astype(np.float32)})


def error(path: Path, rounded: RoundedModel) -> float:
    """Relative, on other data."""
    written = path.with_suffix(".rounded.onnx")
    save_model(rounded.model, written)
    right, ours = (run(open_session(p), data(1).inputs)["y"] for p in (path, written))
    return float(np.linalg.norm(ours - right) / np.linalg.norm(right))


def test_far_inputs_are_divided(tmp_path: Path) -> None:
    path = encoder(tmp_path / "far.onnx", 40.0)
    plain, divided = (round_model(path, data(), smoothing=on) for on in (False, True))
    assert len(divided.smoothed) == 1
    assert plain.smoothed == ()
    assert "Mul" in operators(ir.to_proto(divided.model))
    assert error(path, divided) < error(path, plain) / 2


ATTENTION = f"""g (float[B,T,{K}] x) => (float[B,T,{K}] y) {{
    n = LayerNormalization(x, s, b)
    q = MatMul(n, wq) qr = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(qr)
    k = MatMul(n, wk) kr = Reshape(k, heads) kt = Transpose<perm=[0,2,3,1]>(kr)
    a = MatMul(qt, kt) p = Softmax<axis=-1>(a)
    m = MatMul(n, wv) v = Add(m, bv) vr = Reshape(v, heads) vt = Transpose<perm=[0,2,1,3]>(vr)
    c = MatMul(p, vt) ct = Transpose<perm=[0,2,1,3]>(c) f = Reshape(ct, flat)
    y = MatMul(f, wo) }}"""


def test_both_sides_of_a_weight_are_divided_without_a_node(tmp_path: Path) -> None:
    """The projection of V: the rows of its weight by the norm, its columns by the context."""
    square = {name: array / 6 for name, array in weights(wq=(K, K), wk=(K, K)).items()}
    numbers = weights(1, s=(K,), b=(K,), wv=(K, K), bv=(K,), wo=(K, K)) | square
    numbers["s"] = np.ones(K, np.float32)
    numbers["s"][3] = 40
    numbers["wv"][3] /= 40
    numbers["wv"][:, 5] *= 40
    for name in ("wq", "wk"):
        numbers[name][3] /= 40
    shapes = {"heads": np.array([0, 0, 4, K // 4]), "flat": np.array([0, 0, K])}
    path = tmp_path / "attention.onnx"
    onnx.save(model(ATTENTION, numbers | shapes), path)
    plain, divided = (round_model(path, data(), smoothing=on) for on in (False, True))
    assert len(divided.smoothed) == len(divided.integers) == 4
    assert "Mul" not in operators(ir.to_proto(divided.model))
    assert error(path, divided) < error(path, plain) / 2


def test_inputs_of_one_reach_are_not(tmp_path: Path) -> None:
    rounded = round_model(encoder(tmp_path / "even.onnx", 1.0), data())
    assert rounded.smoothed == ()
    assert "Mul" not in operators(ir.to_proto(rounded.model))
    assert error(tmp_path / "even.onnx", rounded) == pytest.approx(0, abs=0.02)


def test_weights_in_a_temporary_file_stay_as_long_as_the_model(tmp_path, monkeypatch) -> None:
    """A model in memory is written to a file first, which large weights are read from later."""
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 100)
    monkeypatch.setattr(model_file, "_SMALL_TENSOR_BYTES", 10)
    path = encoder(tmp_path / "even.onnx", 1.0)
    rounded = round_model(ir.load(path), data()).model
    gc.collect()
    save_model(rounded, tmp_path / "rounded.onnx")
    assert run(open_session(tmp_path / "rounded.onnx"), data(1).inputs)["y"].shape == (64, 5, K)


@pytest.mark.parametrize(("neurons", "aside"), [(8, 0), (16, 0), (17, 8)])
def test_a_network_of_few_neurons_has_no_branch(tmp_path: Path, neurons: int, aside: int) -> None:
    numbers = weights(w=(K, neurons), v=(neurons, K))
    numbers["w"][:, 0] *= 100
    types = f"g (float[B,T,{K}] x) => (float[B,T,{K}] y)"
    text = f"{types} {{ a = MatMul(x, w) h = Relu(a) y = MatMul(h, v) }}"
    onnx.save(model(text, numbers), tmp_path / "few.onnx")
    rounded = round_model(tmp_path / "few.onnx", data())
    assert sum(rounded.outliers.values()) == aside
    assert len(rounded.integers) == 2
