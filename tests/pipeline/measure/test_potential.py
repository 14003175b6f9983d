"""Whether a model is worth compressing, as a function of where its bytes and its time go."""

from __future__ import annotations

import math

import model_kinds
import pytest

from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.measure.kind_shares import TimeShares
from compress_onnx.pipeline.measure.potential import measure_potential, potential_of
from compress_onnx.pipeline.runtime.session import SessionSpec


@pytest.mark.parametrize(
    ("bytes_", "times", "worth", "verdict"),
    [
        (
            {"linear": 80, "embedding": 20},
            {"linear": 0.7, "attention": 0.3},
            "yes",
            "worth it: 70% of the time and 80% of the weights' bytes are in linear layers, which "
            "can be changed",
        ),
        (
            {"convolution": 100},
            {"convolution": 0.92, "other": 0.08},
            "no",
            "not worth it: there are no linear layers to change; 92% of the time is in "
            "convolutions, which this tool does not change",
        ),
        (
            {"convolution": 99, "linear": 1},
            {"convolution": 0.95, "linear": 0.03, "other": 0.02},
            "no",
            "not worth it: 95% of the time is in convolutions, which this tool does not change; "
            "only 3% of the time and 1% of the weights' bytes are in linear layers",
        ),
        (
            {"recurrent": 90, "linear": 10},
            {"recurrent": 0.6, "convolution": 0.3, "linear": 0.1},
            "hardly",
            "hardly worth it: 60% of the time is in recurrent layers (LSTM, GRU, RNN) and 30% in "
            "convolutions, which this tool does not change; only 10% of the time and 10% of the "
            "weights' bytes are in linear layers",
        ),
        (
            {"embedding": 95, "linear": 5},
            {"linear": 0.8, "embedding": 0.2},
            "yes",
            "worth it for its speed alone: 80% of the time and 5% of the weights' bytes are in "
            "linear layers; 95% of the weights' bytes are in embeddings (tables that Gather "
            "reads), which this tool does not change",
        ),
        (
            {"linear": 60, "convolution": 40},
            {"convolution": 0.99, "linear": 0.01},
            "yes",
            "worth it for its size alone: 1% of the time and 60% of the weights' bytes are in "
            "linear layers; 99% of the time is in convolutions, which this tool does not change",
        ),
        (
            {"quantized": 90, "elementwise": 10},
            {"quantized": 0.85, "attention": 0.15},
            "no",
            "not worth it: there are no linear layers to change; 85% of the time is in layers "
            "that are quantized already, which this tool does not change",
        ),
    ],
)
def test_the_verdict_names_the_reason(bytes_, times, worth, verdict):
    found = potential_of(bytes_, TimeShares(times, 0))
    assert (found.worth, found.verdict) == (worth, verdict)


@pytest.mark.parametrize(
    ("share", "worth"), [(0.2, "yes"), (0.19, "hardly"), (0.04, "hardly"), (0.039, "no")]
)
def test_the_limits_of_the_verdicts(share, worth):
    times = TimeShares({"linear": share, "convolution": 1 - share}, 0)
    assert potential_of({"convolution": 99, "linear": 1}, times).worth == worth
    bytes_ = {"linear": round(1000 * share), "convolution": 1000 - round(1000 * share)}
    assert potential_of(bytes_, TimeShares({"convolution": 1.0}, 0)).worth == worth


def test_the_bound_is_amdahl_s():
    found = potential_of({"linear": 1}, TimeShares({"linear": 0.5, "other": 0.5}, 0))
    assert found.speedup_bound == pytest.approx(2)
    assert found.speedup_at_half == pytest.approx(4 / 3)
    found = potential_of({"linear": 1}, TimeShares({"linear": 1.0}, 0))
    assert found.speedup_bound == math.inf


def test_without_times_the_bytes_decide_and_nothing_is_said_about_speed():
    found = potential_of({"linear": 60, "embedding": 40}, None)
    assert found.worth == "yes"
    assert found.verdict.startswith("worth it for its size: 60% of the weights' bytes")
    assert (found.speedup_bound, found.speedup_at_half) == (None, None)
    assert {row.share_of_time for row in found.kinds} == {None}
    assert potential_of({"embedding": 1}, None).worth == "no"


def test_a_model_without_weights_has_a_verdict():
    assert potential_of({}, TimeShares({"elementwise": 1.0}, 0)).worth == "no"
    assert potential_of({}, None).worth == "no"


def test_layers_that_the_profile_hides_are_in_the_notes():
    found = potential_of({"linear": 1}, TimeShares({"attention": 1.0}, 3))
    assert found.notes[0].startswith("3 linear layers have no kernel of their own")


def test_a_model_that_does_not_run_has_a_verdict_by_its_bytes():
    original = open_original(model_kinds.block())
    found = measure_potential(original, iter([{}]), SessionSpec(threads=1))
    assert found.worth == "yes"
    assert found.inputs == ""
    assert found.notes[0].startswith("time was not measured: ONNX Runtime cannot run the model")


def test_on_a_gpu_the_profile_is_not_believed():
    original = open_original(model_kinds.block())
    found = measure_potential(original, iter([{}]), SessionSpec(provider="cuda"))
    assert "kernel launches" in found.notes[0]
