"""Grids of batch, length and threads: every combination, by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from pydantic import ValidationError

from compress_onnx.pipeline.measure.latency import (
    benchmark_feeds,
    cases_of,
    feeds_by_shape,
    measure_latency,
    shapes_of,
)
from compress_onnx.pipeline.recipe import BenchmarkSpec
from compress_onnx.pipeline.runtime.samples import Samples

QUICK = {"provider": "cpu", "threads": 1, "warmup": 0, "iterations": 5}


@pytest.fixture
def encoder(tmp_path) -> Path:
    return small.save(small.encoder(), tmp_path / "encoder.onnx")


def test_a_number_is_a_grid_of_one():
    for settings in (BenchmarkSpec(), BenchmarkSpec(batch=1, length=[128])):
        assert cases_of(settings) == (("", 1, 128, None),)
    assert cases_of(BenchmarkSpec(threads=3), [2]) == (("", 1, 128, 2),)


@pytest.mark.parametrize(
    ("batch", "length", "threads", "names"),
    [
        ([1, 8], [16, 128], (), ["1x16", "1x128", "8x16", "8x128"]),
        ([1, 8], 128, (), ["1x128", "8x128"]),
        (1, [16, 128], (4,), ["1x16", "1x128"]),
        (1, 128, (1, 2), ["t1", "t2"]),
        ([1, 8], 16, (1, 2), ["1x16.t1", "1x16.t2", "8x16.t1", "8x16.t2"]),
    ],
)
def test_every_combination_has_a_name(batch, length, threads, names):
    cases = cases_of(BenchmarkSpec(batch=batch, length=length), threads)
    assert [case.name for case in cases] == names


@pytest.mark.parametrize("sizes", [0, [], [1, 0], "many", [1, "x"], -1])
def test_what_is_no_size_is_refused(sizes):
    with pytest.raises(ValidationError, match="batch"):
        BenchmarkSpec.model_validate({"batch": sizes})


def test_rows_are_measured_at_their_sizes(encoder):
    settings = BenchmarkSpec(batch=(1, 3), length=(4, 6), **QUICK)
    rows, unmeasured = measure_latency(encoder, encoder, settings)
    assert unmeasured == {}
    shapes = {row.name: row.input_shapes["input_ids"] for row in rows}
    assert shapes == {
        "cpu.1x4": (1, 4),
        "cpu.1x6": (1, 6),
        "cpu.3x4": (3, 4),
        "cpu.3x6": (3, 6),
    }
    for row in rows:
        samples = row.input_shapes["input_ids"][0]
        assert row.candidate_samples_per_s == pytest.approx(1000 * samples / row.candidate.p50_ms)
        ratio = row.candidate_samples_per_s / row.reference_samples_per_s
        assert ratio == pytest.approx(row.speedup)


def test_threads_are_measured_in_turn(encoder):
    settings = BenchmarkSpec(length=4, **QUICK)
    rows, _ = measure_latency(encoder, encoder, settings, threads=(1, 2))
    assert [(row.name, row.threads) for row in rows] == [("cpu.t1", 1), ("cpu.t2", 2)]


def test_samples_a_second_are_those_that_the_graph_takes(encoder):
    model = onnx.load(encoder)
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(model, encoder)
    (row,), _ = measure_latency(encoder, encoder, BenchmarkSpec(length=4, **QUICK))
    assert row.candidate_samples_per_s == pytest.approx(5000 / row.candidate.p50_ms)


def test_one_inference_stands_for_a_grid_at_its_first_sizes(encoder):
    settings = BenchmarkSpec(batch=(2, 8), length=(5, 3))
    data = Samples(small.sentences(), "attention_mask")
    for samples in (None, data):
        feeds = benchmark_feeds(encoder, settings, samples=samples, seed=0)
        assert {array.shape for array in feeds.values()} == {(2, 5)}
        assert all(np.issubdtype(array.dtype, np.integer) for array in feeds.values())


def test_each_shape_has_inputs_of_its_size(encoder):
    settings = BenchmarkSpec(batch=(2, 8), length=(5, 3))
    found = feeds_by_shape(encoder, settings, samples=None, seed=0)
    shapes = {name: {array.shape for array in feeds.values()} for name, feeds in found.items()}
    assert shapes == {"2x5": {(2, 5)}, "2x3": {(2, 3)}, "8x5": {(8, 5)}, "8x3": {(8, 3)}}
    (alone,) = feeds_by_shape(encoder, BenchmarkSpec(batch=2, length=5), samples=None, seed=0)
    assert alone == ""
    assert shapes_of({"x": np.zeros((2, 5)), "n": np.array(1)}) == "x 2x5, n scalar"


def test_sizes_that_the_model_fixes_are_no_shapes_of_their_own(encoder):
    model = onnx.load(encoder)
    for end in model.graph.input:
        end.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(model, encoder)
    settings = BenchmarkSpec(batch=(2, 8), length=(5, 3))
    found = feeds_by_shape(encoder, settings, samples=None, seed=0)
    assert list(found) == ["2x5", "2x3"]
    alone = feeds_by_shape(encoder, BenchmarkSpec(batch=(2, 8)), samples=None, seed=0)
    assert list(alone) == [""]
