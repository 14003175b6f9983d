"""The streaming comparison: equal to a one-shot one, and never blind to damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.measure import compare
from compress_onnx.pipeline.measure.compare import OutputComparator
from compress_onnx.pipeline.results import OutputComparison

FLOATS = st.floats(-1e3, 1e3, width=32)


def compared(reference, candidate, mask=None) -> OutputComparison:
    comparator = OutputComparator()
    comparator.update(np.asarray(reference), np.asarray(candidate), mask)
    return comparator.result("y")


def assert_failed(result: OutputComparison) -> None:
    assert result.max_abs == math.inf
    assert result.relative_l2 == math.inf
    assert result.cosine == 0.0
    assert result.snr_db == -math.inf


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


def test_equal_outputs_are_exactly_equal(reference):
    result = compared(reference, reference.copy())
    assert (result.max_abs, result.relative_l2, result.cosine) == (0.0, 0.0, 1.0)
    assert result.snr_db is None
    assert result.elements == reference.size


def test_known_figures():
    result = compared([[3.0, 4.0]], [[3.0, 4.5]])
    assert result.max_abs == 0.5
    assert result.relative_l2 == pytest.approx(0.1)
    assert result.snr_db == pytest.approx(20.0)
    assert result.cosine == pytest.approx(27 / (5 * math.hypot(3, 4.5)))


@given(
    pair=hnp.arrays(np.float32, (2, 9, 3), elements=FLOATS),
    cuts=st.lists(st.integers(0, 9), max_size=4),
)
def test_streaming_equals_one_shot(pair, cuts):
    reference, candidate = pair
    comparator = OutputComparator()
    for part_r, part_c in zip(
        np.split(reference, sorted(cuts)), np.split(candidate, sorted(cuts)), strict=True
    ):
        comparator.update(part_r, part_c)
    streamed = comparator.result("y")
    r, c = (a.astype(np.float64).ravel() for a in pair)
    error, norm = np.linalg.norm(c - r), np.linalg.norm(r)
    assert streamed.elements == r.size
    assert streamed.max_abs == np.abs(c - r).max()
    if norm:
        assert streamed.relative_l2 == pytest.approx(error / norm, rel=1e-9, abs=1e-30)
    if norm and np.linalg.norm(c):
        assert streamed.cosine == pytest.approx(r @ c / norm / np.linalg.norm(c), abs=1e-9)


def test_large_arrays_are_compared_to_the_last_chunk(reference, monkeypatch):
    monkeypatch.setattr(compare, "_CHUNK_ELEMENTS", 7)
    candidate = reference.copy()
    candidate[-1, -1, -1] += 1.0
    assert compared(reference, candidate).max_abs == pytest.approx(1.0)
    assert compared(reference, candidate).elements == reference.size


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: a + np.float32(0.1),
        lambda a: a[::-1],
        lambda a: -a,
        lambda a: a * np.float32(1.01),
        np.zeros_like,
    ],
    ids=["offset", "permuted", "negated", "scaled", "zero"],
)
def test_damage_shows(reference, damage):
    result = compared(reference, damage(reference))
    assert result.relative_l2 > 5e-3
    assert result.max_abs > 1e-2
    assert result.snr_db is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_candidate_value_that_is_not_finite_fails_everything(reference, value, caplog):
    candidate = reference.copy()
    candidate[3, 2, 1] = value
    assert_failed(compared(reference, candidate))
    assert "output y cannot be compared" in caplog.text


def test_failure_is_not_forgotten_by_later_batches(reference):
    comparator = OutputComparator()
    comparator.update(reference, np.full_like(reference, math.nan))
    comparator.update(reference, reference)
    assert_failed(comparator.result("y"))


def test_a_finite_candidate_does_not_hide_a_reference_of_nan():
    assert_failed(compared([1.0, math.nan], [1.0, 2.0]))
    assert_failed(compared([1.0, math.inf], [1.0, -math.inf]))


def test_the_same_nan_and_infinity_on_both_sides_are_left_out():
    result = compared([1.0, -math.inf, math.nan], [1.0, -math.inf, math.nan])
    assert result.relative_l2 == 0.0
    assert result.elements == 1


def test_values_that_overflow_fail():
    assert_failed(compared([1e200, 1.0], [2e200, 1.0]))


@pytest.mark.parametrize(
    "candidate",
    [np.ones((2, 3), np.float32), np.ones((3, 2), np.int64), np.ones((3, 2), bool)],
    ids=["shape", "integers", "booleans"],
)
def test_another_shape_or_kind_fails(candidate, caplog):
    assert_failed(compared(np.ones((3, 2), np.float32), candidate))
    assert "instead of" in caplog.text


def test_an_empty_candidate_fails():
    assert_failed(compared(np.ones((3, 2), np.float32), np.ones((0, 2), np.float32)))


def test_half_precision_is_compared_by_value(reference):
    assert 0 < compared(reference, reference.astype(np.float16)).relative_l2 < 1e-3


def test_integers_and_booleans_are_compared_by_value():
    assert compared([3, 4], [3, 3]).relative_l2 == pytest.approx(0.2)
    assert compared([True, True], [True, False]).max_abs == 1.0
    assert compared(np.array([0, 255], np.uint8), np.array([255, 0], np.uint8)).max_abs == 255.0


def test_a_zero_reference_has_no_relative_error():
    result = compared(np.zeros(3), [0.0, 0.0, 1e-3])
    assert (result.relative_l2, result.cosine, result.max_abs) == (math.inf, 0.0, 1e-3)
    assert compared(np.zeros(3), np.zeros(3)).relative_l2 == 0.0


def test_padding_is_left_out_and_real_positions_are_not(reference):
    mask = np.arange(5) < np.array([5, 4, 3, 2, 1, 1])[:, None]
    garbage = np.where(mask[..., None], reference, np.float32(math.nan))
    result = compared(reference, garbage, mask)
    assert (result.relative_l2, result.elements) == (0.0, int(mask.sum()) * 4)
    damaged = garbage.copy()
    damaged[5, 0, 0] += 1
    assert compared(reference, damaged, mask).relative_l2 > 0


def test_a_mask_of_another_shape_hides_nothing(reference):
    pooled = reference[:, 0]
    mask = np.zeros((6, 5), bool)
    assert compared(pooled, pooled + 1, mask).max_abs == pytest.approx(1.0)


@pytest.mark.parametrize("mask", [None, np.zeros((2, 3), bool)])
def test_comparing_nothing_is_a_failure(mask):
    array = np.ones((2, 3, 4) if mask is not None else (0, 4))
    with pytest.raises(DataError, match="comparing nothing"):
        compared(array, array, mask)


def test_no_batch_at_all_is_a_failure():
    with pytest.raises(DataError, match="comparing nothing"):
        OutputComparator().result("y")


def test_text_cannot_be_compared():
    with pytest.raises(DataError, match="only numbers"):
        compared(np.array(["a"]), np.array(["a"]))


def test_the_interval_of_relative_l2_covers_what_it_should():
    # Samples of very different sizes and errors; the truth is the ratio of their expectations.
    rng, trials, covered = np.random.default_rng(3), 300, 0
    truth = 0.1 * math.sqrt(4.0 / 3.0)  # E[s²·u²] / E[s²], u uniform up to 0.2, s independent
    for _ in range(trials):
        scale = rng.uniform(1, 3, size=(80, 1, 1))
        rows = scale * rng.choice([-1.0, 1.0], size=(80, 5, 4))
        result = compared(rows, rows * (1 + rng.uniform(0, 0.2, size=(80, 1, 1))))
        assert result.relative_l2_low < result.relative_l2 < result.relative_l2_high
        covered += result.relative_l2_low <= truth <= result.relative_l2_high
    assert 0.91 <= covered / trials <= 0.98


def test_one_sample_and_zeros_have_no_interval(reference):
    for result in (compared(reference[:1], reference[:1] * 2), compared(*np.zeros((2, 4, 3)))):
        assert (result.relative_l2_low, result.relative_l2_high) == (None, None)
    alike = compared(reference, reference * 1.5)
    assert alike.relative_l2_low == pytest.approx(alike.relative_l2_high)


def test_the_interval_does_not_depend_on_batches_or_padding(reference):
    candidate = reference + np.random.default_rng(1).normal(size=reference.shape) / 10
    mask = np.arange(5) < np.array([5, 4, 3, 2, 1, 1])[:, None]
    padded = np.where(mask[..., None], candidate, 1e6)
    whole = compared(reference, padded, mask)
    comparator = OutputComparator()
    for part, length in ((slice(0, 1), 5), (slice(1, 4), 5), (slice(4, 6), 2)):
        trimmed = part, slice(length)
        comparator.update(reference[trimmed], padded[trimmed], mask[trimmed])
    parts = comparator.result("y")
    assert parts.relative_l2_low == pytest.approx(whole.relative_l2_low)
    assert parts.relative_l2_high == pytest.approx(whole.relative_l2_high)
