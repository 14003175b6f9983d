"""What a drop is measured on, and as what, where there is no recipe."""

from __future__ import annotations

import numpy as np
import pytest
import small_models as small

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.compress.holdout import hold_out, metric_for
from compress_onnx.pipeline.recipe import AccuracyMetric, EmbeddingMetric
from compress_onnx.pipeline.runtime.samples import Samples


def rows(count: int, labels: bool = False) -> Samples:
    numbers = np.arange(count)
    return Samples({"x": numbers[:, None]}, None, numbers if labels else None, "rows")


def test_every_fifth_sample_is_held_out_and_none_is_in_both():
    rest, held_out = hold_out(rows(23, labels=True))
    assert held_out.inputs["x"][:, 0].tolist() == [4, 9, 14, 19]
    assert held_out.labels.tolist() == [4, 9, 14, 19]
    together = [*rest.inputs["x"][:, 0], *held_out.inputs["x"][:, 0]]
    assert sorted(together) == list(range(23))
    assert held_out.origin == "rows, every 5th, held out of calibration"
    assert rest.origin == "rows without every 5th"


def test_a_single_held_out_sample_would_tell_nothing():
    with pytest.raises(DataError, match="9 samples are too few"):
        hold_out(rows(9))
    assert len(hold_out(rows(10))[1]) == 2


def test_the_metric_follows_labels_then_the_objective(tmp_path):
    pooled = small.save(small.encoder(), tmp_path / "encoder.onnx")
    flat = small.save(small.perceptron(), tmp_path / "perceptron.onnx")
    assert isinstance(metric_for(pooled, rows(10, labels=True), "pooled"), AccuracyMetric)
    assert isinstance(metric_for(pooled, rows(10), "pooled"), EmbeddingMetric)
    assert metric_for(pooled, rows(10), "positions") is None
    assert metric_for(pooled, rows(10), None) is None
    assert metric_for(flat, rows(10), "pooled") is None
