"""Intervals: what a library computes must still have the properties that the report relies on."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.pipeline.measure.benchmark import speedup, speedup_interval


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


def test_one_shape_is_what_it_is_without_shapes() -> None:
    times = np.random.default_rng(0).lognormal(sigma=0.2, size=(50, 2))
    assert speedup(times[None]) == speedup(times) == np.divide(*np.median(times, axis=0))
    alone, stacked = (speedup_interval(t, np.random.default_rng(1)) for t in (times, times[None]))
    assert alone == stacked


def test_over_shapes_the_geometric_mean_is_taken_with_its_interval() -> None:
    """Rounds are drawn within each shape: against a plain bootstrap that does so."""
    rng = np.random.default_rng(0)
    medians = np.array([[20.0, 10.0], [300.0, 400.0], [9.0, 1.0]])
    times = rng.lognormal(sigma=0.2, size=(3, 60, 2)) * medians[:, None]
    logs = [
        np.mean(
            [np.log(np.divide(*np.median(t[rng.integers(60, size=60)], axis=0))) for t in times]
        )
        for _ in range(4000)
    ]
    expected = np.exp(np.percentile(logs, [2.5, 97.5]))
    found = speedup_interval(times, np.random.default_rng(1))
    assert list(found) == pytest.approx(list(expected), abs=0.1 * float(np.ptp(expected)) + 0.02)
    assert found.low < speedup(times) < found.high
    assert speedup(times) == pytest.approx(13.5 ** (1 / 3), rel=0.1)


def test_shapes_are_drawn_by_themselves() -> None:
    """What is opposite noise at two shapes does not cancel in the interval."""
    noise = np.random.default_rng(0).lognormal(sigma=0.3, size=60)
    times = np.stack([np.stack([2 * n, np.ones(60)], axis=-1) for n in (noise, 1 / noise)])
    low, high = speedup_interval(times, np.random.default_rng(0))
    assert speedup(times) == pytest.approx(2, rel=0.01)
    assert high - low > 0.1


def test_totals_of_one_round_at_each_shape_are_a_point() -> None:
    times = np.array([[[6.0, 3.0]], [[8.0, 1.0]]])
    assert speedup_interval(times, np.random.default_rng(0), np.sum) == (4, 4)


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    times = rng.lognormal(sigma=0.3, size=(60, 2)) * [20.0, 10.0]
    ratios = [np.divide(*np.median(times[rng.integers(60, size=60)], axis=0)) for _ in range(4000)]
    expected = np.percentile(ratios, [2.5, 97.5])
    found = speedup_interval(times, np.random.default_rng(1))
    assert list(found) == pytest.approx(list(expected), abs=0.1 * float(np.ptp(expected)) + 0.02)
