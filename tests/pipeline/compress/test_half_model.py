"""Models in float16: near what they were, half the size, and sound where float16 is not enough."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import difference, interface, model, operators, parity, weights
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from stranger_graphs import STRANGERS
from tiny_models import samples, two_layers

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.compress.half import KERNEL, half_model
from compress_onnx.pipeline.files.model_file import save_model
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

PRECISION = 2.0**-11
TOLERANCE = 16 * PRECISION
"""For a handful of roundings, one after the other."""

CANCELLING = {"several-outputs"}
"""A mean of numbers that cancel out: they are rounded at their size, not at that of the mean."""

WITHOUT_EVALUATOR = {"softmax-over-the-rest-12"}
"""ONNX's evaluator computes Softmax as of opset 13."""

SEVERAL = Samples({"x": np.random.default_rng(5).standard_normal((40, 8)).astype(np.float32)})


def proto_of(model: ir.Model) -> onnx.ModelProto:
    return ir.to_proto(model)


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_graphs_of_other_exporters(name):
    before = STRANGERS[name].build()
    data = STRANGERS[name].samples()
    after = proto_of(half_model(before, data).model)
    assert interface(after) == interface(before)
    feeds = dict(data.inputs)
    tolerance = 2 * TOLERANCE if name in CANCELLING else TOLERANCE
    assert parity(before, after, feeds) < tolerance
    if "com.microsoft" not in str(before.graph) and name not in WITHOUT_EVALUATOR:
        try:
            expected = ReferenceEvaluator(before).run(None, feeds)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return  # it lacks an operator
        outputs = [value.name for value in before.graph.output]
        rounded = ReferenceEvaluator(after).run(None, feeds)
        expected, rounded = (dict(zip(outputs, v, strict=True)) for v in (expected, rounded))
        assert difference(expected, rounded) < tolerance


def test_the_file_is_half_as_large(tmp_path):
    before, _ = two_layers((64, 256, 64))
    half = half_model(before, samples(64))
    assert not half.floats
    save_model(half.model, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.52 * before.ByteSize()


def test_a_damaged_conversion_is_seen(tmp_path):
    """A weight that float16 does not hold, turned all the same."""
    before, arrays = two_layers()
    onnx.save(before, tmp_path / "model.onnx")
    half = proto_of(half_model(before).model)
    onnx.save(half, tmp_path / "half.onnx")
    data = samples()
    (good,) = validate(tmp_path / "model.onnx", tmp_path / "half.onnx", data).outputs
    assert good.relative_l2 < TOLERANCE
    for tensor in half.graph.initializer:
        if tensor.name.startswith("first.weight"):
            with np.errstate(over="ignore"):
                huge = (arrays["first.weight"] * 1e5).astype(np.float16)  # infinite
            tensor.CopyFrom(numpy_helper.from_array(huge, tensor.name))
    onnx.save(half, tmp_path / "damaged.onnx")
    (bad,) = validate(tmp_path / "model.onnx", tmp_path / "damaged.onnx", data).outputs
    assert not bad.relative_l2 < 0.1


def test_a_weight_that_float16_does_not_hold_stays():
    arrays = weights(w=(8, 8))
    arrays["w"][0, 0] = 1e5
    before = model("g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Tanh(a) }", arrays)
    half = half_model(before)
    assert "a constant of it reaches 1e+05" in half.floats["MatMul_a"]
    assert operators(proto_of(half.model)) == ["MatMul", "Cast", "Tanh", "Cast"]


OVERFLOWING = """g (float[N,8] x) => (float[N,8] y) {
    a = MatMul(x, w) b = Mul(a, large) c = Mul(b, large) d = Div(c, large) e = Div(d, large)
    y = MatMul(e, w) }"""


def test_values_that_float16_does_not_hold_are_found_on_samples():
    before = model(OVERFLOWING, weights(w=(8, 8)) | {"large": np.array(400, np.float32)})
    feeds = dict(SEVERAL.inputs)
    right = ReferenceEvaluator(before).run(None, feeds)[0]
    blind = half_model(before)
    assert not blind.floats
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(ReferenceEvaluator(proto_of(blind.model)).run(None, feeds)[0]).all()
    half = half_model(before, SEVERAL)
    assert {name: reason.split()[0] for name, reason in half.floats.items()} == {
        "Mul_c": "c",
        "Div_d": "c",
    }
    ours = ReferenceEvaluator(proto_of(half.model)).run(None, feeds)[0]
    assert np.abs(ours - right).max() < TOLERANCE * np.abs(right).max()


def test_values_that_are_too_small_are_found_too():
    text = OVERFLOWING.replace(" Mul", " Tmp").replace("Div", "Mul").replace("Tmp", "Div")
    before = model(text, weights(w=(8, 8)) | {"large": np.array(4000, np.float32)})
    half = half_model(before, SEVERAL)
    assert "too small" in half.floats["Mul_d"]
    feeds = dict(SEVERAL.inputs)
    right = ReferenceEvaluator(before).run(None, feeds)[0]
    ours = ReferenceEvaluator(proto_of(half.model)).run(None, feeds)[0]
    assert np.abs(ours - right).max() < TOLERANCE * np.abs(right).max()


def test_masks_are_no_reason_to_stay():
    before = model(
        """g (float[N,8] x) => (float[N,8] y) {
            zero = Sub(x, x) keep = Greater(x, zero) a = Where(keep, x, lowest)
            p = Softmax<axis = -1>(a) y = MatMul(p, w) }""",
        weights(w=(8, 8)) | {"lowest": np.array(np.finfo(np.float32).min)},
    )
    half = half_model(before, SEVERAL)
    assert not half.floats
    ours = ReferenceEvaluator(proto_of(half.model)).run(None, dict(SEVERAL.inputs))[0]
    right = run(open_session(before.SerializeToString()), dict(SEVERAL.inputs))["y"]
    assert np.abs(ours - right).max() < TOLERANCE * np.abs(right).max()


def test_what_onnx_runtime_keeps_in_float32_stays():
    before = model(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) b = Max(a, x) y = MatMul(b, w) }",
        weights(w=(8, 8)),
    )
    assert half_model(before).floats == {"Max_b": KERNEL}


NORM = """g (float[N,T,8] x) => (float[N,T,8] y) {
    h = MatMul(x, w) r = Add(h, x) m = ReduceMean<axes=[-1]>(r) c = Sub(r, m)
    s = Pow(c, two) v = ReduceMean<axes=[-1]>(s) e = Add(v, epsilon) q = Sqrt(e)
    d = Div(c, q) t = Mul(d, gamma) n = Add(t, beta) y = MatMul(n, w) }"""
NORM_CONSTANTS = {"two": np.array(2, np.float32), "epsilon": np.array(1e-5, np.float32)}


def executed(proto, tmp_path):
    open_session(proto.SerializeToString(), optimized_path=tmp_path / "optimized.onnx")
    return Counter(operators(onnx.load(tmp_path / "optimized.onnx")))


def test_norms_are_still_fused(tmp_path):
    """The Casts around a norm in float32 are among what ONNX Runtime looks for."""
    before = model(NORM, weights(w=(8, 8), gamma=(8,), beta=(8,)) | NORM_CONSTANTS)
    found = executed(proto_of(half_model(before, samples(8, 20)).model), tmp_path)
    assert found["SkipLayerNormalization"] == 1
    assert not found["ReduceMean"]


@pytest.mark.parametrize("scale", [200, 5e-4])
def test_sums_whose_squares_do_not_fit_are_not_fused_with_their_norm(scale, tmp_path):
    before = model(NORM, weights(w=(8, 8), gamma=(8,), beta=(8,)) | NORM_CONSTANTS)
    data = Samples({"x": scale * samples(8, 20).inputs["x"]})
    half = proto_of(half_model(before, data).model)
    assert "Sum" in operators(half)
    found = executed(half, tmp_path)
    assert found["LayerNormalization"] == 1
    assert not found["SkipLayerNormalization"]
    feeds = dict(data.inputs)
    right, ours = (ReferenceEvaluator(p).run(None, feeds)[0] for p in (before, half))
    assert np.abs(ours - right).max() < TOLERANCE * np.abs(right).max()


def test_one_large_value_in_a_row_is_no_reason():
    """It is the mean of squares that float16 has to hold."""
    before = model(
        "g (float[N,64] x) => (float[N,64] y) "
        "{ a = Relu(x) r = Add(a, x) y = LayerNormalization(r, one) }",
        {"one": np.ones(64, np.float32)},
    )
    x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    x[:, 3] = 400
    assert "Sum" not in operators(proto_of(half_model(before, Samples({"x": x})).model))
    x[:] = 400
    assert "Sum" in operators(proto_of(half_model(before, Samples({"x": x})).model))


def test_the_model_handed_in_stays_as_it_is():
    before, _ = two_layers()
    bytes_before = before.SerializeToString(deterministic=True)
    half_model(before, samples())
    assert before.SerializeToString(deterministic=True) == bytes_before


def test_samples_that_do_not_fit_are_refused():
    before, _ = two_layers()
    with pytest.raises(DataError, match="x"):
        half_model(before, Samples({"z": np.zeros((4, 3, 6), np.float32)}))
