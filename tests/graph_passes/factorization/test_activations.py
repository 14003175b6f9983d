"""Moments: as exact as the rows' own precision wherever the mean is, and never of NaN."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    MomentAccumulator,
    PairedAccumulator,
)

K = 6


def rows(ratio: float, seed: int = 0) -> np.ndarray:
    """``[500, K]`` with means ``ratio`` times the deviation."""
    return np.random.default_rng(seed).standard_normal((500, K)) + ratio


def accumulated(x: np.ndarray, weights: np.ndarray | None = None) -> ActivationStats:
    accumulator = MomentAccumulator(K)
    for part in np.array_split(np.arange(len(x)), 7):
        accumulator.update(x[part], None if weights is None else weights[part])
    return accumulator.result()


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6, 1e9])
def test_a_large_mean_takes_nothing_from_the_covariance(ratio):
    x = rows(ratio)
    stats = accumulated(x)
    expected = np.cov(x, rowvar=False, bias=True)
    np.testing.assert_allclose(stats.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(stats.mean, x.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(stats.second_moment, x.T @ x / len(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_float32_rows_keep_their_digits(ratio, scale):
    x = (scale * rows(ratio)).astype(np.float32)
    weights = np.random.default_rng(1).random(len(x)) * 1e-30
    for w in (None, weights):
        stats = accumulated(x, w)
        exact = accumulated(x.astype(np.float64), w)
        np.testing.assert_allclose(stats.covariance, exact.covariance, atol=1e-6 * scale**2)
        np.testing.assert_allclose(stats.mean, exact.mean, rtol=1e-6, atol=1e-6 * scale)
        np.testing.assert_allclose(stats.magnitude, exact.magnitude, rtol=1e-6)


def test_products_that_overflow_are_computed_in_float64():
    x, y = ((1e30 * rows(1.0, seed)).astype(np.float32) for seed in (0, 1))
    exact = np.cov(x, rowvar=False, bias=True, dtype=np.float64)
    np.testing.assert_allclose(accumulated(x).covariance, exact, rtol=1e-5, atol=1e54)
    paired = PairedAccumulator(K)
    paired.update(x, y, np.ones(len(x)))
    centred = [value - value.mean(axis=0, dtype=np.float64) for value in (x, y)]
    expected = centred[0].T @ centred[1] / len(x)
    np.testing.assert_allclose(paired.result().cross, expected, rtol=1e-4, atol=1e54)


def test_float16_rows_are_multiplied_in_float32():
    x = rows(100.0).astype(np.float16)
    exact = accumulated(x.astype(np.float64))
    np.testing.assert_allclose(accumulated(x).covariance, exact.covariance, atol=1e-5)


def test_merged_parts_are_as_exact():
    x = rows(1e6)
    x[300:] += 2.0
    merged = ActivationStats.merge([accumulated(x[:300]), accumulated(x[300:])])
    expected = np.cov(x, rowvar=False, bias=True)
    np.testing.assert_allclose(merged.covariance, expected, atol=1e-8)


def test_uncentred_statistics_are_second_moments():
    x = rows(3.0)
    stats = accumulated(x).uncentred()
    np.testing.assert_allclose(stats.covariance, x.T @ x / len(x), rtol=1e-12)
    np.testing.assert_allclose(stats.second_moment, stats.covariance)
    assert not stats.mean.any()


@pytest.mark.parametrize("ratio", [0.0, 1e6])
def test_cross_moments_are_centred_and_weighted(ratio):
    x, y = rows(ratio), rows(-2 * ratio, seed=1) + 0.5 * rows(0.0)
    weights = np.random.default_rng(2).random(len(x)).astype(np.float32)
    accumulator = PairedAccumulator(K)
    for part in np.array_split(np.arange(len(x)), 7):
        accumulator.update(x[part], y[part], weights[part])
    found = accumulator.result()
    share = weights.astype(np.float64)[:, None] / weights.sum(dtype=np.float64)
    means = [(share * value).sum(axis=0) for value in (x, y)]
    centred = [value - mean for value, mean in zip((x, y), means, strict=True)]
    np.testing.assert_allclose(found.cross, (share * centred[0]).T @ centred[1], atol=1e-8)
    np.testing.assert_allclose(
        found.first.covariance, (share * centred[0]).T @ centred[0], atol=1e-8
    )
    np.testing.assert_allclose(found.second_mean, means[1], rtol=1e-12, atol=1e-12)


def test_rows_that_weigh_nothing_leave_zeros():
    weights = np.zeros(500, np.float32)
    stats = accumulated(rows(1.0), weights)
    assert (stats.count, stats.covariance.any(), stats.mean.any()) == (500, False, False)
    empty = PairedAccumulator(K).result()
    assert (empty.first.count, empty.cross.any()) == (0, False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(value):
    good, bad = rows(0.0), rows(0.0)
    bad[3, 2] = value
    ones = np.ones(len(good))
    with pytest.raises(DataError, match="'hidden' is NaN or infinite") as caught:
        MomentAccumulator(K, "'hidden'").update(bad)
    assert "\n" not in str(caught.value)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(DataError, match="'hidden' is NaN or infinite"):
            PairedAccumulator(K, name="'hidden'").update(*pair, ones)


@pytest.mark.parametrize("first_weight", [1.0, 1e-12])
def test_rows_that_hardly_vary_leave_no_noise(first_weight):
    """One row a batch, all but the first the same: rounding must not look like variance."""
    rng = np.random.default_rng(0)
    same = 5 * rng.standard_normal(K).astype(np.float32)
    batches = [rng.standard_normal(K).astype(np.float32), *([same] * 6)]
    paired, alone = PairedAccumulator(K), MomentAccumulator(K)
    for index, row in enumerate(batches):
        weight = np.array([first_weight if index == 0 else 1.0 + index])
        paired.update(row[None], row[None], weight)
        alone.update(row[None], weight)
    w = np.array([first_weight, *(2.0 + np.arange(6))])
    exact = np.cov(np.array(batches, np.float64).T, aweights=w, ddof=0)
    both = paired.result()
    for found in (both.first.covariance, both.cross, alone.result().covariance):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("ratio", [0.0, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_that_are_collected_apart_add_up(ratio, weighted):
    x = rows(ratio)
    # The first part weighs nothing, and units differ from part to part.
    weights = np.repeat([0.0, 1e-20, 3.0, 5.0], len(x) // 4) if weighted else None
    total, later = MomentAccumulator(K), [MomentAccumulator(K) for _ in range(4)]
    for accumulator, part in zip(later, np.array_split(np.arange(len(x)), 4), strict=True):
        for batch in np.array_split(part, 3):
            accumulator.update(x[batch], None if weights is None else weights[batch])
    for accumulator in (*later[:2], MomentAccumulator(K), *later[2:]):
        total.merge(accumulator)
    found, expected = total.result(), accumulated(x, weights)
    assert found.count == expected.count == len(x)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-12)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.magnitude, expected.magnitude, rtol=1e-12)
