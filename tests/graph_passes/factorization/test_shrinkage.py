"""Shrinkage and mixing: moments stay moments, the ends of the scale are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.graph_passes.factorization import (
    ActivationStats,
    GradientStats,
    MomentAccumulator,
    PairedAccumulator,
    make_method,
)
from compress_onnx.graph_passes.factorization.neurons import fold, order_neurons

K, N = 6, 4
STRENGTHS = [0.0, 0.1, 0.5, 1.0]


def accumulated(x: np.ndarray, weights: np.ndarray | None = None) -> ActivationStats:
    accumulator = MomentAccumulator(K)
    accumulator.update(x, weights)
    return accumulator.result()


def rows(count: int, seed: int) -> np.ndarray:
    """``[count, K]`` of few directions, so that the covariance is singular."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3)) @ rng.standard_normal((3, K)) + seed


def known(seed: int, count: int = 50) -> ActivationStats:
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((count, N))
    x = rows(count, seed)
    seen = accumulated(x, np.sum(gradients**2, axis=1))
    stats = accumulated(x)
    found = GradientStats(seen, gradients.T @ gradients / count)
    return ActivationStats(stats.count, stats.mean, stats.magnitude, stats.covariance, found)


def test_no_shrinkage_changes_no_bit():
    stats = known(1)
    shrunk = stats.shrunk(0.0)
    for ours, theirs in ((shrunk, stats), (shrunk.gradients.inputs, stats.gradients.inputs)):
        for field in ("mean", "magnitude", "covariance"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    np.testing.assert_array_equal(shrunk.gradients.moment, stats.gradients.moment)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_shrunk_matrices_are_positive_and_of_the_same_trace(strength):
    stats = known(2)
    shrunk = stats.shrunk(strength)
    pairs = [
        (stats.covariance, shrunk.covariance),
        (stats.gradients.inputs.covariance, shrunk.gradients.inputs.covariance),
        (stats.gradients.moment, shrunk.gradients.moment),
    ]
    for before, after in pairs:
        values = np.linalg.eigvalsh(after)
        least = strength * np.trace(before) / len(before)
        assert values[0] >= least - 1e-12 * values[-1]
        np.testing.assert_allclose(np.trace(after), np.trace(before))
        np.testing.assert_array_equal(after, after.T)


@pytest.mark.parametrize("method", ["asvd", "gauss-newton"])
def test_at_full_strength_the_weight_alone_decides(method):
    weight = np.random.default_rng(3).standard_normal((K, N))
    options = {"damping": 1e-9} if method == "gauss-newton" else {}
    shrunk = make_method(method, options).decompose(weight, known(3).shrunk(1.0))
    plain = make_method("svd", {}).decompose(weight, None)
    for rank in (1, 2, 3):
        np.testing.assert_allclose(
            shrunk.factorize(rank).product(), plain.factorize(rank).product(), atol=1e-8
        )


def test_at_full_strength_neurons_are_not_predicted_from_one_another():
    weight = np.random.default_rng(4).standard_normal((K, N))
    stats = known(4).shrunk(1.0)
    kept = order_neurons(weight, stats).kept(3)
    np.testing.assert_array_equal(kept, np.sort(np.argsort(-np.sum(weight**2, axis=1))[:3]))
    np.testing.assert_allclose(fold(weight, stats, kept).weight, weight[kept], atol=1e-12)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_mixed_moments_are_those_of_weighted_rows(strength):
    first, second = rows(40, 1), rows(90, 2)
    shares = [1 - strength, strength]
    parts = [accumulated(first), accumulated(second)]
    mixed = ActivationStats.mixed(parts, shares, [10, 30])  # samples of 4 and of 3 rows
    weights = np.repeat([shares[0] / 10, shares[1] / 30], [40, 90])
    expected = accumulated(np.vstack([first, second]), weights)
    np.testing.assert_allclose(mixed.mean, expected.mean)
    np.testing.assert_allclose(mixed.magnitude, expected.magnitude)
    np.testing.assert_allclose(mixed.covariance, expected.covariance, atol=1e-12)
    assert np.linalg.eigvalsh(mixed.covariance)[0] > -1e-10


def test_mixed_gradients_are_those_of_weighted_rows():
    rng = np.random.default_rng(5)
    xs, gs = ([rng.standard_normal((n, size)) for n in (40, 90)] for size in (K, N))
    parts = [
        GradientStats(accumulated(x, np.sum(g**2, axis=1)), g.T @ g / len(g))
        for x, g in zip(xs, gs, strict=True)
    ]
    mixed = GradientStats.mixed(parts, [0.7, 0.3])
    weights = np.repeat([0.7 / 40, 0.3 / 90], [40, 90])
    x, g = np.vstack(xs), np.vstack(gs)
    np.testing.assert_allclose(mixed.moment, (g.T * weights) @ g)
    expected = accumulated(x, weights * np.sum(g**2, axis=1))
    np.testing.assert_allclose(mixed.inputs.covariance, expected.covariance)
    np.testing.assert_allclose(mixed.inputs.mean, expected.mean)


def test_pairs_shrink_as_if_rows_were_added_that_nothing_disturbed():
    rng = np.random.default_rng(6)
    original, weight = rng.standard_normal((200, K)), rng.standard_normal((K, N))
    disturbed = original + 0.3 * rng.standard_normal(original.shape)
    accumulator = PairedAccumulator(K)
    accumulator.update(disturbed, original, np.ones(200))
    found = accumulator.result()
    shrunk = found.through(weight).shrunk(0.25, weight)
    level = np.trace(found.first.covariance) / K * np.eye(K)
    np.testing.assert_allclose(shrunk.first.covariance, 0.75 * found.first.covariance + level / 4)
    np.testing.assert_allclose(shrunk.cross, (0.75 * found.cross + level / 4) @ weight)
    np.testing.assert_array_equal(found.shrunk(0.0, np.eye(K)).cross, found.cross)


def test_sums_of_outputs_are_those_of_inputs_through_the_weight():
    rng = np.random.default_rng(7)
    original, weight = 3 + rng.standard_normal((200, K)), rng.standard_normal((K, N))
    disturbed, counts = original + 0.3 * rng.standard_normal(original.shape), rng.random(200)
    inputs, outputs = PairedAccumulator(K), PairedAccumulator(K, N)
    inputs.update(disturbed, original, counts)
    outputs.update(disturbed, original @ weight, counts)
    through, found = inputs.result().through(weight), outputs.result()
    np.testing.assert_allclose(found.cross, through.cross, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.second_mean, through.second_mean)
