"""Sequential repair on data that are hard: few, constant, far from zero, or no numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_models import saved, two_layers

from compress_onnx.graph_passes.errors import DataError, NotDifferentiableError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.sequential import repaired
from compress_onnx.pipeline.evidence.gradients import output_gradients
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.runtime.samples import Samples

FEATURES = (24, 32, 16)


def factored(tmp_path, x, method="asvd"):
    """The products of the factors of both weights, after repair on ``x``."""
    path = saved(tmp_path, two_layers(FEATURES)[0])
    request = CompressionSpec(
        method=MethodSpec(name=method), params=0.5, rank_multiple=2, sequential=True
    )
    found = learn(path, Samples({"x": x})).compress(request).repaired.factors
    return {key: factorization.product() for key, factorization in found.items()}


@pytest.mark.parametrize("method", ["asvd", "gauss-newton"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_inputs_that_never_vary_leave_finite_factors(tmp_path, method, count, value):
    x = np.full((count, 1, FEATURES[0]), value, np.float32)
    for product in factored(tmp_path, x, method).values():
        assert np.isfinite(product).all()


def test_rounding_is_nothing_to_learn_from():
    """The covariance of inputs that differ in their last digit must not move the weight."""
    rng = np.random.default_rng(0)
    weight, noise = rng.standard_normal((6, 4)), rng.standard_normal((6, 6))
    tiny = 1e-14 * 1e6  # the square of float32's precision, times that of inputs near 1000
    covariance, cross = tiny * noise @ noise.T, tiny * noise
    moved = repaired(weight, covariance, cross @ weight, 0.03, 1e-12 * 1e6 * 100)
    np.testing.assert_allclose(moved, weight, atol=0.02 * np.abs(weight).max())


def test_inputs_far_from_zero_are_repaired_as_well(tmp_path):
    """A mean 1000 times the deviation: the layer is exact up to float32, so nothing is repaired."""
    x = np.random.default_rng(0).standard_normal((200, 3, FEATURES[0])).astype(np.float32)
    path = saved(tmp_path, two_layers(FEATURES)[0])
    proto = onnx.load(path)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    near = factored(tmp_path, x)["first.weight"]
    far = factored(tmp_path, x + np.float32(1000))["first.weight"]
    # The first layer sees the same deviations; float32 inputs near 1000 have 6e-5 of them lost.
    scale = np.abs(weights["first.weight"]).max()
    np.testing.assert_allclose(far, near, atol=2e-3 * scale)


@pytest.mark.parametrize("method", ["asvd", "gauss-newton"])
def test_values_that_overflow_are_one_line(tmp_path, method):
    proto, weights = two_layers(FEATURES, activation="Exp")
    path = saved(tmp_path, proto)
    x = np.ones((4, 3, FEATURES[0]), np.float32)
    x[2] = 1e4 * np.sign(weights["first.weight"][:, 0])
    request = CompressionSpec(method=MethodSpec(name=method), params=0.5, sequential=True)
    with pytest.raises(DataError, match="'h1' is NaN or infinite on these samples"):
        learn(path, Samples({"x": x})).basis(request)


def test_a_reference_of_nan_is_refused(tmp_path):
    proto, _ = two_layers(FEATURES, activation="Sqrt")
    path = saved(tmp_path, proto)
    x = np.random.default_rng(0).standard_normal((4, 3, FEATURES[0])).astype(np.float32)
    with pytest.raises(DataError, match="reference itself computes NaN in its output 'y'"):
        validate(path, path, Samples({"x": x}))


def test_gradients_of_nan_are_not_left_out(tmp_path):
    path = saved(tmp_path, two_layers(FEATURES, activation="Sqrt")[0])
    x = np.random.default_rng(0).standard_normal((4, 3, FEATURES[0])).astype(np.float32)
    original = open_original(path)
    with pytest.raises(NotDifferentiableError, match="not finite"):
        output_gradients(original, Samples({"x": x}), RunSettings())
