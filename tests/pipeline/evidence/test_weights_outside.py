"""Weights in files give the gradients and repairs of weights inside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_models as small

from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence import backward
from compress_onnx.pipeline.evidence.gradients import output_gradients
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.evidence.shifts import referring, weights_outside
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run


@pytest.fixture
def samples():
    x = np.random.default_rng(1).normal(size=(100, small.FEATURES)).astype(np.float32)
    return Samples({"x": x}, origin="made up")


def inside(tmp_path):
    return small.save(small.perceptron(), tmp_path / "inside.onnx")


def outside(tmp_path):
    path = tmp_path / "outside.onnx"
    onnx.save_model(
        small.perceptron(), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    return path


@pytest.mark.parametrize("saved", [inside, outside])
def test_the_graph_holds_no_large_weight_and_computes_the_same(tmp_path, samples, saved):
    original = open_original(saved(tmp_path))
    feeds = dict(samples.inputs)
    expected = run(open_session(original.path), feeds)
    proto = referring(original.model, original.data_folder)
    with weights_outside(proto, original.data_folder) as (proto, folder):
        assert max(len(tensor.raw_data) for tensor in proto.graph.initializer) < 1024
        found = run(open_session(proto.SerializeToString(), data_folder=folder), feeds)
    np.testing.assert_array_equal(found["y"], expected["y"])


def test_gradients_are_those_of_weights_inside(tmp_path, samples, monkeypatch):
    found = [
        output_gradients(open_original(path), samples, RunSettings())
        for path in (inside(tmp_path), outside(tmp_path))
    ]
    monkeypatch.setattr(backward, "is_prepared", lambda _proto: False)
    found.append(output_gradients(open_original(outside(tmp_path)), samples, RunSettings()))
    assert found[0].stats.keys() == set(small.SITES)
    for other in found[1:]:
        for site, stats in found[0].stats.items():
            np.testing.assert_array_equal(stats.moment, other.stats[site].moment)
            np.testing.assert_array_equal(
                stats.inputs.covariance, other.stats[site].inputs.covariance
            )


def test_a_model_is_compressed_alike(tmp_path, samples):
    request = CompressionSpec(method={"name": "auto"}, params=0.5, rank_multiple=1)
    plans = [
        learn(path, samples).compress(request).evaluated()
        for path in (inside(tmp_path), outside(tmp_path))
    ]
    assert plans[0].sequential
    assert plans[0] == plans[1]
