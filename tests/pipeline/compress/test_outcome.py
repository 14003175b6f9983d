"""Whether to deploy what was written, as a function of what was measured."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import small_models as small
from report_factory import make_benchmark

from compress_onnx.pipeline.compress.outcome import Figures, judged, measure_outcome
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.results import Drop, SizeReport
from compress_onnx.pipeline.runtime.samples import Samples


def size(after, before=1000):
    return SizeReport(
        reference_bytes=before,
        candidate_bytes=after,
        reference_parameters=9,
        candidate_parameters=9,
    )


def timed(speedup, low=None, high=None):
    known = {"speedup": speedup, "speedup_low": low or speedup, "speedup_high": high or speedup}
    return make_benchmark().model_copy(update=known)


def drop(value, quantity="relative_l2"):
    return Drop(quantity=quantity, value=value)


HALF, SAME, LARGER = size(500), size(1000), size(1100)
FAST, SLOW, LEVEL = timed(1.5), timed(0.8), timed(1.01)
CLOSE = drop(0.03)


@pytest.mark.parametrize(
    ("figures", "advice", "said"),
    [
        (Figures(HALF, FAST, CLOSE), "deploy", "deploy: 1.50 times as fast [1.50, 1.50], 0.50"),
        (Figures(HALF, SLOW, CLOSE), "deploy", "for its size alone, no speed-up is sure: 0.80"),
        (Figures(LARGER, FAST, CLOSE), "deploy", "deploy: for its speed alone: 1.50 times as fast"),
        (Figures(HALF, None, CLOSE), "deploy", "0.50 times the size, speed not measured; it loses"),
        (Figures(SAME, LEVEL, CLOSE), "not worth it", "less than 1.02 times is no gain"),
        (Figures(size(990), LEVEL, CLOSE), "not worth it", "less than 1.02 times is no gain"),
        (Figures(LARGER, SLOW, CLOSE), "not worth it", "less than 1.02 times is no gain"),
        (Figures(SAME, None, CLOSE), "not worth it", "speed not measured, and less than 1.02"),
        (Figures(SAME, timed(1.3, 0.9, 1.6), CLOSE), "not worth it", "[0.90, 1.60]"),
        (Figures(HALF, FAST), "validate first", "nothing is known about its outputs"),
        (Figures(HALF, FAST, drop(0.6)), "not worth it", "it loses 0.6 (relative_l2)"),
        (Figures(HALF, FAST, drop(math.inf)), "not worth it", "it loses inf"),
        (Figures(HALF, FAST, drop(math.nan)), "not worth it", "it loses nan"),
        (Figures(HALF, FAST, drop(0.3)), "validate first", "only its own metric tells"),
        (Figures(HALF, FAST, drop(0.02, "accuracy_drop")), "validate first", "own metric"),
        (Figures(HALF, FAST, drop(-0.01, "accuracy_drop")), "deploy", "it loses -0.01"),
        (Figures(HALF, FAST, drop(0.02, "ndcg_drop")), "validate first", "own metric"),
        (Figures(HALF, FAST, drop(0.3), max_drop=0.3), "deploy", "it loses 0.3"),
        (Figures(HALF, FAST, drop(0.2, "1 - cosine")), "not worth it", "more than 0.1"),
        (Figures(HALF, FAST, CLOSE, max_drop=0.02), "not worth it", "more than 0.02: keep more"),
        (Figures(HALF, FAST, drop(0.6), max_drop=0.7), "deploy", "it loses 0.6 (relative_l2)"),
    ],
)
def test_the_verdict_follows_from_the_figures(figures, advice, said):
    found = judged(figures)
    assert found.advice == advice
    assert found.verdict.startswith(f"{advice}: ")
    assert said in found.verdict


@pytest.mark.parametrize(
    ("figures", "warnings"),
    [
        (Figures(HALF, FAST, CLOSE), []),
        (Figures(HALF, SLOW, CLOSE), ["slower than the original: 0.80 times as fast"]),
        (Figures(HALF, timed(0.97, 0.9, 1.02), CLOSE), []),
        (Figures(LARGER, FAST, CLOSE), ["larger than the original: 1,100 bytes, not 1,000"]),
        (Figures(LARGER, SLOW), ["slower than the original", "larger than the original"]),
    ],
)
def test_what_is_worse_than_the_original_is_a_warning(figures, warnings):
    found = judged(figures).warnings
    assert len(found) == len(warnings)
    assert all(text.startswith(start) for text, start in zip(found, warnings, strict=True))


@pytest.fixture
def rows():
    x = np.random.default_rng(3).normal(size=(20, small.FEATURES)).astype(np.float32)
    return Samples({"x": x}, origin="rows")


def test_a_damaged_model_is_not_worth_it_however_small(tmp_path, rows):
    reference = small.save(small.perceptron(), tmp_path / "model.onnx")
    proto = small.perceptron()
    for tensor in proto.graph.initializer:
        damaged = np.zeros(tensor.dims, np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(damaged, tensor.name))
    candidate = small.save(proto, tmp_path / "damaged.onnx")
    found = measure_outcome(reference, candidate, rows, RunSettings(), feeds=None)
    assert found.drop.value == pytest.approx(1)
    smaller = Figures(HALF, FAST, found.drop, found.drop_on)
    assert judged(smaller).verdict == (
        "not worth it: it loses 1 (relative_l2) on 20 samples of rows, more than 0.5: keep more "
        "of the model, calibrate on more data, or train it with --recover"
    )


def test_both_models_are_timed_on_the_first_inputs_that_they_take(tmp_path, rows):
    path = small.save(small.perceptron(), tmp_path / "model.onnx")
    feeds = iter([{"x": np.ones((1, 7), np.float32)}, {"x": rows.inputs["x"][:2]}])
    found = measure_outcome(path, path, rows, RunSettings(), feeds=feeds)
    assert found.benchmark.input_shapes == {"x": (2, small.FEATURES)}
    assert found.drop.value == 0
    assert not found.notes


def test_what_cannot_be_measured_is_a_note(tmp_path, rows):
    path = small.save(small.perceptron(), tmp_path / "model.onnx")
    other = small.save(small.encoder(), tmp_path / "other.onnx")
    feeds = iter([{"x": np.ones((1, 7), np.float32)}])
    found = measure_outcome(path, other, rows, RunSettings(), feeds=feeds)
    assert (found.benchmark, found.drop) == (None, None)
    assert found.notes[0].startswith("the outputs were not compared: ")
    assert found.notes[1].startswith("speed was not measured: ")
    assert found.advice in {"validate first", "not worth it"}
