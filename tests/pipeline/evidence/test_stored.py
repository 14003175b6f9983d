"""What statistics at rest cost a plan: nothing in its ranks, next to nothing in its errors."""

from __future__ import annotations

import numpy as np
import pytest
import small_models as small

from compress_onnx.graph_passes.factorization import symmetric
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.runtime.samples import Samples


@pytest.fixture
def samples():
    rng = np.random.default_rng(1)
    deviations = np.geomspace(1e-3, 1, small.FEATURES)
    x = rng.normal(size=(200, small.FEATURES)) * deviations
    # Means a thousand times the deviations, which a second moment in float32 would lose.
    return Samples({"x": (x + 1000 * deviations[::-1]).astype(np.float32)}, origin="made up")


def plan_with(path, samples, method, cache):
    request = CompressionSpec(method={"name": method}, params=0.5, rank_multiple=1)
    return learn(path, samples, RunSettings(cache=cache)).compress(request).evaluated()


@pytest.mark.parametrize("method", ["asvd", "gauss-newton"])
def test_ranks_stay_and_errors_nearly(tmp_path, samples, method, monkeypatch):
    path = small.save(small.perceptron(), tmp_path / "model.onnx")
    cache = ArrayCache(tmp_path / "cache")
    first = plan_with(path, samples, method, cache)
    assert first == plan_with(path, samples, method, cache)
    assert first == plan_with(path, samples, method, None)
    monkeypatch.setattr(symmetric, "STEPS_FROM", 0)
    steps = plan_with(path, samples, method, None)
    assert steps != first
    assert [site.rank for site in first.sites] == [site.rank for site in steps.sites]
    for ours, theirs in zip(steps.factored, first.factored, strict=True):
        assert ours.error.reached == pytest.approx(theirs.error.reached, rel=3e-2)
