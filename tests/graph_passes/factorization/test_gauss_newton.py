from dataclasses import replace

import numpy as np
import pytest
from scipy import linalg

from compress_onnx.graph_passes.factorization import ActivationStats, GradientStats, make_method
from compress_onnx.graph_passes.factorization.gauss_newton import damped_half
from compress_onnx.graph_passes.factorization.moments import MomentAccumulator

K, N = 7, 5


def statistics(seed=0, k=K, n=N, rows=200):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k)) + 1.0
    g = rng.standard_normal((rows, n)) @ np.diag(np.geomspace(3, 0.05, n))
    accumulator = MomentAccumulator(k)
    accumulator.update(x, np.sum(g**2, axis=1))
    gradients = GradientStats(accumulator.result(), g.T @ g)
    plain = MomentAccumulator(k)
    plain.update(x)
    return replace(plain.result(), gradients=gradients), x, g


def damage(weight, approximation, stats, damping):
    half = damped_half(stats.gradients.moment, damping)
    error = (weight - approximation) @ half
    return float(np.vdot(error, stats.gradients.inputs.covariance @ error))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3])
def test_equals_truncated_svd_in_both_metrics(shape, rank):
    stats, _, _ = statistics(k=shape[0], n=shape[1])
    weight = np.random.default_rng(1).standard_normal(shape)
    left = linalg.sqrtm(stats.gradients.inputs.covariance).real
    moment = stats.gradients.moment
    right = linalg.sqrtm(moment + 0.02 * np.trace(moment) / len(moment) * np.eye(len(moment))).real
    u, s, vt = np.linalg.svd(left @ weight @ right)
    truncated = (u[:, :rank] * s[:rank]) @ vt[:rank]
    optimum = np.linalg.solve(left, truncated) @ np.linalg.inv(right)
    found = make_method("gauss-newton").decompose(weight, stats)
    np.testing.assert_allclose(found.factorize(rank).product(), optimum, atol=1e-7)
    np.testing.assert_allclose(found.energy * found.tail[rank], np.sum(s[rank:] ** 2), rtol=1e-8)


def test_no_other_factors_of_the_rank_do_less_damage():
    stats, _, _ = statistics()
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((K, N))
    term = make_method("gauss-newton").decompose(weight, stats).factorize(2).terms[0]
    least = damage(weight, term.product(), stats, 0.02)
    for scale in np.geomspace(1e-4, 1, 20):
        down = term.down + scale * rng.standard_normal(term.down.shape)
        up = term.up + scale * rng.standard_normal(term.up.shape)
        assert damage(weight, down @ up, stats, 0.02) >= least


def test_protects_what_the_outputs_depend_on_better_than_asvd():
    stats, x, g = statistics()
    weight = np.random.default_rng(3).standard_normal((K, N))

    def output_change(name):
        factorization = make_method(name).decompose(weight, stats).factorize(2)
        error = x @ (factorization.product() - weight) + factorization.bias
        return float(np.sum(np.sum(error * g, axis=1) ** 2))

    assert output_change("gauss-newton") < output_change("asvd")


def test_full_rank_is_exact_and_factors_are_balanced():
    stats, _, _ = statistics()
    weight = np.random.default_rng(4).standard_normal((K, N)).astype(np.float32)
    factorization = make_method("gauss-newton").decompose(weight, stats).factorize(N)
    term = factorization.terms[0]
    np.testing.assert_allclose(factorization.product(), weight, atol=1e-5)
    np.testing.assert_allclose(factorization.bias, 0, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(term.down, axis=0), np.linalg.norm(term.up, axis=1), rtol=1e-5
    )
    assert term.down.dtype == np.float32


def test_weighted_mean_output_is_kept():
    stats, _, _ = statistics()
    weight = np.random.default_rng(5).standard_normal((K, N))
    factorization = make_method("gauss-newton").decompose(weight, stats).factorize(1)
    mean = stats.gradients.inputs.mean
    np.testing.assert_allclose(
        mean @ factorization.product() + factorization.bias, mean @ weight, atol=1e-10
    )


def test_a_site_without_influence_is_factored_all_the_same():
    stats, _, _ = statistics()
    dead = replace(stats, gradients=GradientStats(stats.gradients.inputs, np.zeros((N, N))))
    weight = np.random.default_rng(6).standard_normal((K, N))
    found = make_method("gauss-newton").decompose(weight, dead)
    assert np.isfinite(found.factorize(2).product()).all()


def test_needs_gradients():
    stats, _, _ = statistics()
    with pytest.raises(ValueError, match="gradients"):
        make_method("gauss-newton").decompose(np.ones((K, N)), replace(stats, gradients=None))


def test_weighted_moments_equal_repeated_rows():
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((20, 3)), rng.integers(0, 4, 20)
    weighted, repeated = MomentAccumulator(3), MomentAccumulator(3)
    weighted.update(x[:9], w[:9])
    weighted.update(x[9:], w[9:])
    repeated.update(np.repeat(x, w, axis=0))
    for field in ("mean", "magnitude", "second_moment"):
        np.testing.assert_allclose(
            getattr(weighted.result(), field), getattr(repeated.result(), field), atol=1e-12
        )


def test_merging_sites_adds_their_damages():
    one, _, _ = statistics(0)
    two, _, _ = statistics(1)
    merged = ActivationStats.merge([one, two]).gradients
    np.testing.assert_allclose(merged.moment, one.gradients.moment + two.gradients.moment)
    share = one.gradients.strength / merged.strength
    np.testing.assert_allclose(
        merged.inputs.mean,
        share * one.gradients.inputs.mean + (1 - share) * two.gradients.inputs.mean,
    )
    assert ActivationStats.merge([one, replace(two, gradients=None)]).gradients is None
