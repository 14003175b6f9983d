"""The largest magnitude of each value is what the values say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import canonical, model, weights
from onnx.reference import ReferenceEvaluator

from compress_onnx.pipeline.evidence.magnitudes import SAMPLES, magnitudes
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.runtime.samples import Samples

X = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)


def found(text, arrays=None, x=X):
    work = canonical(model(text, arrays or {}))
    settings = RunSettings(batch_size=3)
    return work, magnitudes(work, Path(), Samples({"x": x}), settings).largest


def test_they_are_the_largest_over_all_batches():
    text = "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Neg(a) }"
    work, largest = found(text, weights(w=(8, 8)))
    work.graph.outputs.append(next(v for n in work.graph for v in n.outputs if v.name == "a"))
    y, a = ReferenceEvaluator(ir.to_proto(work)).run(None, {"x": X})
    assert largest == {
        "a": pytest.approx(np.abs(a).max(), rel=1e-5),
        "y": pytest.approx(np.abs(y).max(), rel=1e-5),
    }


@pytest.mark.parametrize("opset", [17, 18])
def test_mean_squares_are_those_of_the_largest_row(opset):
    work = canonical(model("g (float[N,8] x) => (float[N,8] y) { y = Neg(x) }", {}, opset))
    settings = RunSettings(batch_size=3)
    measured = magnitudes(work, Path(), Samples({"x": X}), settings, ["y"])
    largest = (X.astype(np.float64) ** 2).mean(axis=-1).max()
    assert measured.mean_squares == {"y": pytest.approx(largest, rel=1e-5)}
    assert measured.largest == {"y": pytest.approx(np.abs(X).max())}


def test_infinite_values_and_integers_do_not_count():
    text = """g (float[N,8] x) => (float[N,8] y, int64[N,8] i) {
        zero = Sub(x, x) b = Greater(x, zero) y = Where(b, x, low) i = Cast<to = 7>(x) }"""
    _, largest = found(text, {"low": np.array(-np.inf, np.float32)})
    assert largest == {"zero": 0.0, "y": pytest.approx(X.max())}


def test_empty_values_have_none():
    text = "g (float[N,8] x) => (float[N,0] y) { y = Slice(x, zero, zero, one) }"
    _, largest = found(text, {"zero": np.array([0]), "one": np.array([1])})
    assert largest == {"y": 0.0}


def test_values_inside_nested_graphs_are_not_looked_at():
    text = """g (float[N,8] x) => (float[N,8] y) {
        yes = Constant<value = bool {1}>()
        y = If (yes) < then_branch = t () => (float[N,8] p) { q = Neg(x) p = Neg(q) },
                       else_branch = e () => (float[N,8] r) { r = Neg(x) } > }"""
    _, largest = found(text)
    assert largest == {"y": pytest.approx(np.abs(X).max())}


def test_many_samples_are_thinned_out():
    """The last one is looked at, and none twice."""
    x = np.zeros((SAMPLES + 50, 8), np.float32)
    x[-1] = 5
    _, largest = found("g (float[N,8] x) => (float[N,8] y) { y = Neg(x) }", x=x)
    assert largest == {"y": 5.0}
