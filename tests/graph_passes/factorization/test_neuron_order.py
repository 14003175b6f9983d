"""Neurons go in order of what they cost; damage is what is lost; the fold is the best one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    GradientStats,
    MomentAccumulator,
)
from compress_onnx.graph_passes.factorization.neurons import fold, order_neurons

H, N, ROWS = 24, 5, 400


def network(
    seed: int, *, gradients: bool = False
) -> tuple[np.ndarray, np.ndarray, ActivationStats]:
    """Hidden values ``[ROWS, H]`` that hang together, a down layer, and their statistics."""
    rng = np.random.default_rng(seed)
    hidden = np.maximum(rng.standard_normal((ROWS, 9)) @ rng.standard_normal((9, H)), 0)
    weight = rng.standard_normal((H, N))
    accumulator = MomentAccumulator(H)
    accumulator.update(hidden)
    stats = accumulator.result()
    if gradients:
        g = rng.standard_normal((ROWS, N)) * np.array([10, 3, 1, 0.1, 0.01])
        stats = replace(stats, gradients=GradientStats(stats, g.T @ g))
    return hidden, weight, stats


def lost(hidden: np.ndarray, weight: np.ndarray, stats: ActivationStats, kept: np.ndarray) -> float:
    """The mean squared error of the layer's outputs with the neurons ``kept``."""
    made = fold(weight, stats, kept)
    right = hidden @ weight
    return float(np.square(hidden[:, kept] @ made.weight + made.bias - right).sum(axis=1).mean())


@given(st.integers(0, 10_000), st.integers(1, H))
def test_damage_is_what_the_outputs_lose(seed, neurons):
    hidden, weight, stats = network(seed)
    order = order_neurons(weight, stats)
    found = lost(hidden, weight, stats, order.kept(neurons))
    assert found == pytest.approx(order.damage[neurons], rel=0.05, abs=0.01 * order.energy)


@given(st.integers(0, 10_000))
def test_sets_are_nested_and_damage_never_rises(seed):
    _, weight, stats = network(seed)
    order = order_neurons(weight, stats)
    assert sorted(order.order) == list(range(H))
    assert order.damage[H] == 0
    assert (np.diff(order.damage) <= 1e-9 * order.energy).all()
    assert order.energy == pytest.approx(np.trace(weight.T @ stats.covariance @ weight), rel=0.01)
    for neurons in range(1, H):
        assert set(order.kept(neurons)) < set(order.kept(neurons + 1))


def test_the_order_is_far_better_than_chance():
    hidden, weight, stats = network(3)
    order, rng = order_neurons(weight, stats), np.random.default_rng(0)
    ours = lost(hidden, weight, stats, order.kept(8))
    others = [lost(hidden, weight, stats, np.sort(rng.permutation(H)[:8])) for _ in range(200)]
    assert ours < np.quantile(others, 0.02)


@given(st.integers(0, 10_000))
def test_no_other_fold_loses_less(seed):
    hidden, weight, stats = network(seed)
    kept = order_neurons(weight, stats).kept(8)
    centred = hidden - hidden.mean(axis=0)
    best = np.linalg.lstsq(centred[:, kept], centred @ weight, rcond=None)[0]
    least = np.square(centred[:, kept] @ best - centred @ weight).sum(axis=1).mean()
    assert least * (1 - 1e-9) <= lost(hidden, weight, stats, kept)
    assert lost(hidden, weight, stats, kept) <= 1.05 * least + 1e-3 * np.square(weight).sum()


def test_all_neurons_stay_as_they_are():
    _, weight, stats = network(0)
    folded = fold(weight, stats, np.arange(H))
    np.testing.assert_allclose(folded.weight, weight, atol=1e-8)
    np.testing.assert_allclose(folded.bias, 0, atol=1e-7)
    np.testing.assert_array_equal(folded.dense(H), folded.weight)


def test_gradients_say_which_outputs_count():
    hidden, weight, stats = network(5, gradients=True)
    weighted = np.array([10, 3, 1, 0.1, 0.01]) ** 2 * ROWS

    def damage(kept: np.ndarray) -> float:
        made = fold(weight, stats, kept)
        error = hidden[:, kept] @ made.weight + made.bias - hidden @ weight
        return float((np.square(error) * weighted).sum(axis=1).mean())

    by_outputs, blind = (
        order_neurons(weight, stats),
        order_neurons(weight, replace(stats, gradients=None)),
    )
    assert damage(by_outputs.kept(6)) < damage(blind.kept(6))
    assert damage(by_outputs.kept(6)) == pytest.approx(by_outputs.damage[6], rel=0.3)


def test_a_value_that_never_varies_needs_no_neuron():
    _, weight, stats = network(0)
    still = replace(stats, centred=np.zeros((H, H)))
    assert order_neurons(weight, still).damage[1] >= 0
    folded = fold(weight, still, np.arange(3))
    mean_output = stats.mean @ weight
    np.testing.assert_allclose(stats.mean[:3] @ folded.weight + folded.bias, mean_output)


def test_statistics_of_another_layer_are_refused():
    _, weight, stats = network(0)
    with pytest.raises(ValueError, match="do not fit"):
        order_neurons(weight[:-1], stats)
