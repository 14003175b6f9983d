"""Gates: parsing, the names of quantities, and what must never pass."""

from __future__ import annotations

import math

import pytest

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.measure.gates import (
    check_gates,
    kept_of,
    measured_quantities,
    parse_gate,
)
from compress_onnx.pipeline.recipe import Gate
from compress_onnx.pipeline.results import (
    Benchmark,
    LatencyStats,
    Loading,
    OutputComparison,
    SizeReport,
    ValidationReport,
)


def latency(p50_ms: float) -> LatencyStats:
    return LatencyStats(
        iterations=5,
        p50_ms=p50_ms,
        p90_ms=p50_ms + 1,
        p99_ms=p50_ms + 2,
        mean_ms=p50_ms,
        std_ms=0.0,
        min_ms=p50_ms,
    )


def comparison(output: str, relative_l2: float) -> OutputComparison:
    return OutputComparison(
        output=output,
        elements=10,
        max_abs=2 * relative_l2,
        relative_l2=relative_l2,
        cosine=1 - relative_l2,
        snr_db=None if relative_l2 == 0 else -20 * math.log10(relative_l2),
    )


VALIDATION = ValidationReport(
    samples=3,
    origin="test",
    outputs=(comparison("hidden", 0.25), comparison("pooled", 0.0)),
    metrics={"cosine": 0.9, "spearman": math.nan},
    batch_invariance=0.999,
    batch_invariance_reference=1.0,
)
BENCHMARK = Benchmark(
    provider="cpu",
    providers=("CPUExecutionProvider",),
    threads=1,
    optimization="all",
    input_shapes={"x": (1, 4)},
    reference=latency(20.0),
    candidate=latency(10.0),
    speedup=2.0,
    speedup_low=1.8,
    speedup_high=2.2,
    reference_samples_per_s=50.0,
    candidate_samples_per_s=100.0,
)
LOADING = Loading(
    provider="cpu",
    threads=1,
    rounds=5,
    reference_load_ms=40.0,
    candidate_load_ms=30.0,
    load_ratio=0.75,
    load_ratio_low=0.7,
    load_ratio_high=0.8,
    reference_resident_bytes=1000,
    candidate_resident_bytes=500,
    resident_ratio=0.5,
    resident_ratio_low=0.4,
    resident_ratio_high=0.6,
)
SIZE = SizeReport(
    reference_bytes=1000, candidate_bytes=600, reference_parameters=200, candidate_parameters=100
)


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("cosine>=0.8", Gate(quantity="cosine", min=0.8)),
        (" p50_ms.cpu <= 2e1 ", Gate(quantity="p50_ms.cpu", max=20.0)),
        ("output.last/hidden:0.snr_db>=-3", Gate(quantity="output.last/hidden:0.snr_db", min=-3)),
    ],
)
def test_gate_text_is_read(text, gate):
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cosine",
        "cosine>0.8",
        "cosine=0.8",
        ">=0.8",
        "cosine>=",
        "a>=b",
        "a>=nan",
        "a<=inf",
        "a>=1<=2",
        "a b>=1",
    ],
)
def test_other_text_is_refused_with_an_example(text):
    with pytest.raises(RequestError, match=r"for example cosine>=0\.8"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("q>=0.5", 0.5, True),
        ("q>=0.5", 0.49, False),
        ("q<=0.5", 0.5, True),
        ("q<=0.5", 0.51, False),
        ("q>=0.5", math.inf, True),
        ("q<=0.5", math.inf, False),
        ("q<=0.5", -math.inf, True),
        ("q>=0.5", math.nan, False),
        ("q<=0.5", math.nan, False),
    ],
)
def test_a_gate_holds_up_to_its_threshold_and_nan_never_passes(text, value, passed):
    (result,) = check_gates([parse_gate(text)], {"q": value})
    assert result.passed is passed
    assert (result.quantity, result.threshold) == ("q", 0.5)
    assert result.limit == ("min" if ">=" in text else "max")


@pytest.mark.parametrize("text", ["speedup.cuda>=1", "speedup.cuda<=100"])
def test_what_was_not_measured_fails(text):
    (result,) = check_gates([parse_gate(text)], measured_quantities(VALIDATION, [BENCHMARK], SIZE))
    assert result.value is None
    assert not result.passed


def test_quantities_have_the_documented_names():
    quantities = measured_quantities(VALIDATION, [BENCHMARK], SIZE)
    assert math.isnan(quantities.pop("spearman"))
    assert math.isnan(quantities.pop("spearman.cpu"))
    for name in [name for name in quantities if f"{name}.cpu" in quantities]:
        assert quantities.pop(f"{name}.cpu") == quantities[name]
    assert quantities.pop("output.hidden.snr_db") == pytest.approx(12.04, abs=0.01)
    assert quantities == {
        "cosine": 0.9,
        "kept": 0.9,
        "batch_invariance": 0.999,
        "batch_invariance_reference": 1.0,
        "max_abs": 0.5,
        "relative_l2": 0.25,
        "min_output_cosine": 0.75,
        "output.hidden.max_abs": 0.5,
        "output.hidden.relative_l2": 0.25,
        "output.hidden.cosine": 0.75,
        "output.pooled.max_abs": 0.0,
        "output.pooled.relative_l2": 0.0,
        "output.pooled.cosine": 1.0,
        "output.pooled.snr_db": math.inf,
        "speedup.cpu": 2.0,
        "speedup_low.cpu": 1.8,
        "latency_ratio.cpu": 0.5,
        "p50_ms.cpu": 10.0,
        "p90_ms.cpu": 11.0,
        "p99_ms.cpu": 12.0,
        "samples_per_s.cpu": 100.0,
        "size_ratio": 0.6,
        "parameter_ratio": 0.5,
        "candidate_bytes": 600,
        "candidate_parameters": 100,
    }


def test_without_measurements_there_are_no_quantities():
    assert measured_quantities(None) == {}


def elsewhere(relative_l2):
    damaged = VALIDATION.model_copy(
        update={"provider": "cuda", "outputs": (comparison("hidden", relative_l2),)}
    )
    return VALIDATION.model_copy(update={"elsewhere": (damaged,)})


@pytest.mark.parametrize(("relative_l2", "passed"), [(0.25, True), (0.9, False)])
def test_a_model_that_is_damaged_on_one_provider_alone_fails_there(relative_l2, passed):
    gates = [parse_gate(f"{name}<=0.3") for name in ("relative_l2", "relative_l2.cuda")]
    first, other = check_gates(gates, measured_quantities(elsewhere(relative_l2)))
    assert first.passed
    assert other.passed is passed
    assert other.value == relative_l2


@pytest.mark.parametrize(
    ("gate", "unmeasured", "reason"),
    [
        ("batch_invariance>=0.9999", {"batch_invariance": "batch of 4"}, "batch of 4"),
        ("batch_invariance.cuda>=0.9999", {"cuda": "no device"}, "no device"),
        ("speedup.cuda.8x128>=1", {"cuda": "no device"}, "no device"),
        ("speedup.cuda>=1", {}, None),
    ],
)
def test_what_was_not_measured_fails_with_the_reason(gate, unmeasured, reason):
    (result,) = check_gates([parse_gate(gate)], {}, unmeasured)
    assert not result.passed
    assert result.reason == reason


def test_what_was_measured_needs_no_reason():
    (result,) = check_gates([parse_gate("speedup.cpu>=1")], {"speedup.cpu": 2}, {"cpu": "no"})
    assert (result.passed, result.reason) == (True, None)


def test_the_plain_name_is_the_worst_of_a_grid():
    slow = {"case": "1x16", "speedup": 0.9, "speedup_low": 0.8, "candidate": latency(30.0)}
    small = BENCHMARK.model_copy(update={**slow, "candidate_samples_per_s": 20.0})
    large = BENCHMARK.model_copy(update={"case": "8x128"})
    quantities = measured_quantities(None, [small, large])
    assert quantities["speedup.cpu"] == quantities["speedup.cpu.1x16"] == 0.9
    assert quantities["speedup_low.cpu"] == 0.8
    assert quantities["speedup.cpu.8x128"] == 2.0
    assert quantities["p50_ms.cpu"] == quantities["p50_ms.cpu.1x16"] == 30.0
    assert quantities["p50_ms.cpu.8x128"] == 10.0
    assert quantities["samples_per_s.cpu"] == 20.0
    gates = [parse_gate(f"speedup.cpu{case}>=1") for case in ("", ".1x16", ".8x128")]
    passed = [gate.passed for gate in check_gates(gates, quantities)]
    assert passed == [False, False, True]


def test_loading_has_quantities():
    assert measured_quantities(None, loadings=[LOADING]) == {
        "load_ms.cpu": 30.0,
        "load_ratio.cpu": 0.75,
        "load_ratio_high.cpu": 0.8,
        "resident_bytes.cpu": 500,
        "resident_ratio.cpu": 0.5,
        "resident_ratio_high.cpu": 0.6,
    }


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        ({"accuracy": 0.72, "accuracy_reference": 0.9}, 0.8),
        ({"ndcg": 0.3, "ndcg_reference": 0.6}, 0.5),
        ({"bleu": 20.0, "bleu_reference": 40.0}, 0.5),
        ({"cosine": 0.98, "cosine_p5": 0.9}, 0.98),
        ({"accuracy": 0.0, "accuracy_reference": 0.0}, None),
        ({}, None),
    ],
)
def test_what_is_kept_of_the_score(figures, kept):
    assert kept_of(figures) == (None if kept is None else pytest.approx(kept))
