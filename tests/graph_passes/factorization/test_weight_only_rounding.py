"""Integers in blocks: what error feedback, scales and a residual are worth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats
from compress_onnx.graph_passes.factorization.weight_only import (
    BLOCK,
    Feedback,
    damage,
    round_blocks,
    round_to_nearest,
    round_weight_only,
)

SIZES = st.tuples(st.integers(1, 80), st.integers(1, 12))


def weight_of(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


def moment_of(rows: int, seed: int) -> np.ndarray:
    """A covariance whose directions differ a lot."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * rows, rows)) @ rng.standard_normal((rows, rows))
    return x.T @ x / len(x)


def stats_of(rows: int, columns: int, seed: int = 0, *, gradients: bool = True) -> ActivationStats:
    mean = np.random.default_rng(seed).standard_normal(rows)
    plain = ActivationStats(100, mean, np.abs(mean), moment_of(rows, seed))
    if not gradients:
        return plain
    return ActivationStats(
        100, mean, np.abs(mean), plain.covariance, GradientStats(plain, moment_of(columns, seed))
    )


@given(SIZES, st.integers(0, 1000), st.sampled_from([4, 8]))
@settings(max_examples=30, deadline=None)
def test_the_nearest_integers_are_near(size: tuple[int, int], seed: int, bits: int) -> None:
    weight = weight_of(size, seed)
    found = round_to_nearest(weight, None, bits)
    assert found.numbers.max() < 1 << bits
    assert found.scale.shape == (-(-size[0] // BLOCK), size[1])
    left = weight - found.values()
    blocks = [slice(i, i + BLOCK) for i in range(0, size[0], BLOCK)]
    for block, scale in zip(blocks, found.scale, strict=True):
        largest = np.abs(weight[block]).max(axis=0)
        # At worst the nearest of the whole range: half a step, and what float32 rounds.
        bound = np.sqrt(len(weight[block])) * largest / ((1 << bits) - 2) + 1e-6
        assert (np.linalg.norm(left[block], axis=0) <= bound).all()
        assert np.isfinite(scale).all()


@given(SIZES, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_where_inputs_do_not_vary_together_feedback_is_the_nearest(
    size: tuple[int, int], seed: int
) -> None:
    weight = weight_of(size, seed)
    moment = np.diag(np.random.default_rng(seed).uniform(0.5, 2.0, size[0]))
    rounded = Feedback.of(moment).round(weight, lambda _, row: np.rint(row * 4) / 4)
    np.testing.assert_array_equal(rounded, np.rint(weight * 4) / 4)


def test_feedback_rounds_every_row_once_the_most_varied_first() -> None:
    moment = moment_of(150, 0)  # more rows than reach the others in one product
    seen: list[int] = []

    def round_row(index: int, row: np.ndarray) -> np.ndarray:
        seen.append(index)
        return np.rint(row)

    Feedback.of(moment).round(weight_of((150, 3), 0), round_row)
    assert seen == sorted(range(150), key=lambda i: -moment[i, i])


def test_rows_behind_make_up_for_an_error_as_well_as_they_can() -> None:
    """Two rows: when the first is off by e, the second is best off by −C₂₁/C₂₂·e."""
    moment = np.array([[4.0, 1.5], [1.5, 1.0]])
    feedback = Feedback.of(moment, damping=1e-12)
    rounded = feedback.round(np.array([[0.4], [0.0]]), lambda i, r: r * i)
    np.testing.assert_allclose(rounded, [[0.0], [1.5 * 0.4]], rtol=1e-6)


def test_feedback_loses_less_than_the_nearest() -> None:
    """Over many draws, by a lot; and never more, because the nearest are kept then."""
    shares = []
    for seed in range(20):
        weight, moment = weight_of((70, 9), seed), moment_of(70, seed)
        nearest = round_to_nearest(weight, np.diag(moment))
        least = damage(weight - nearest.values(), moment)
        fed = Feedback.of(moment).round(
            weight, lambda i, row, n=nearest: _with_scale(row, n.scale[i // BLOCK])
        )
        found = round_blocks(weight, moment)
        shares.append(damage(weight - fed, moment) / least)
        assert damage(weight - found.values(), moment) <= least
    assert np.mean(shares) < 0.7


def _with_scale(row: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(row / scale), -8, 7) * scale.astype(np.float64)


@pytest.mark.parametrize("gradients", [True, False])
def test_damage_falls_with_the_rank_to_nothing(gradients: bool) -> None:
    weight = weight_of((48, 20), 3).astype(np.float32)
    stats = stats_of(48, 20, gradients=gradients)
    found = [
        round_weight_only(weight, stats, rank=rank, storage="same").damage
        for rank in (0, 1, 2, 5, 10, 20)
    ]
    assert all(more > less for more, less in pairwise(found))
    assert found[-1] < 1e-9 * found[0]


def test_a_residual_of_full_rank_reproduces_the_weight() -> None:
    weight = weight_of((40, 24), 4).astype(np.float32)
    found = round_weight_only(weight, None, rank=24, storage="same")
    assert found.residual is not None
    assert found.bias is None
    total = found.base.values() + found.residual.product()
    np.testing.assert_allclose(total, weight, atol=1e-5)


def test_turns_never_add_damage() -> None:
    """And take some away where a few directions hold most of the weight."""
    totals = np.zeros(3)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        most = rng.standard_normal((64, 3)) @ rng.standard_normal((3, 32))
        weight = (most + 0.1 * rng.standard_normal((64, 32))).astype(np.float32)
        stats = stats_of(64, 32, seed, gradients=False)
        found = [round_weight_only(weight, stats, rank=6, turns=t).damage for t in (1, 2, 4)]
        assert found == sorted(found, reverse=True)
        totals += found
    assert totals[2] < totals[1] < totals[0]


def test_the_bias_keeps_the_mean_output() -> None:
    weight, stats = weight_of((40, 7), 6).astype(np.float32), stats_of(40, 7)
    found = round_weight_only(weight, stats, rank=2)
    assert found.residual is not None
    assert found.bias is not None
    made = stats.mean @ (found.base.values() + found.residual.product()) + found.bias
    np.testing.assert_allclose(made, stats.mean @ weight.astype(np.float64))


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_zeros_and_inputs_that_never_vary(bits: int) -> None:
    zeros = round_weight_only(np.zeros((33, 3), np.float32), stats_of(33, 3), bits)
    assert (zeros.base.values() == 0).all()
    still = ActivationStats(9, np.zeros(33), np.zeros(33), np.zeros((33, 33)))
    weight = weight_of((33, 3), 0).astype(np.float32)
    found = round_weight_only(weight, still, bits)
    assert np.abs(weight - found.base.values()).max() < np.abs(weight).max() / (1 << (bits - 2))
    assert found.damage == 0


@pytest.mark.parametrize(("size", "short"), [(1.0, True), (1e-6, False), (1e7, False)])
def test_scales_take_half_of_the_bytes_where_they_can(size: float, short: bool) -> None:
    found = round_to_nearest(size * weight_of((40, 5), 0), None)
    stored = found.stored_scale
    assert (stored is not None) == short
    if stored is not None:
        np.testing.assert_array_equal(stored.values(np.dtype(np.float32)), found.scale)
    left = size * weight_of((40, 5), 0) - found.values()
    assert np.abs(left).max() < 0.4 * size
