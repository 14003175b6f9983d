"""Intervals: what a library computes must still have the properties that the report relies on."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.pipeline.measure.benchmark import speedup_interval


def test_totals_of_one_round_are_a_point() -> None:
    times = np.array([[6.0, 3.0]])
    assert speedup_interval(times, np.random.default_rng(0), np.sum) == (2, 2)


def test_the_interval_does_not_depend_on_the_unit() -> None:
    times = np.random.default_rng(0).lognormal(sigma=0.2, size=(50, 2))
    found = [speedup_interval(times * unit, np.random.default_rng(1)) for unit in (1.0, 1e6)]
    np.testing.assert_allclose(found[0], found[1])


def test_pairs_stay_together() -> None:
    """Rounds of very unlike length, of which the candidate always takes half."""
    rounds = np.geomspace(1, 1e4, 20)
    times = np.outer(rounds, [2.0, 1.0])
    interval = speedup_interval(times, np.random.default_rng(0), np.sum)
    np.testing.assert_allclose(interval, 2)
    # Unpaired, the same times say next to nothing.
    shuffled = np.column_stack([times[:, 0], np.random.default_rng(0).permutation(times[:, 1])])
    low, high = speedup_interval(shuffled, np.random.default_rng(0), np.sum)
    assert high - low > 0.5


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    times = rng.lognormal(sigma=0.3, size=(60, 2)) * [20.0, 10.0]
    ratios = [np.divide(*np.median(times[rng.integers(60, size=60)], axis=0)) for _ in range(4000)]
    expected = np.percentile(ratios, [2.5, 97.5])
    found = speedup_interval(times, np.random.default_rng(1))
    assert list(found) == pytest.approx(list(expected), abs=0.1 * float(np.ptp(expected)) + 0.02)
