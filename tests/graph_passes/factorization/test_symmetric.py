"""Symmetric matrices in little memory: what is the same, and what rounding costs."""

from __future__ import annotations

import numpy as np
import pytest

from compress_onnx.graph_passes.factorization.projection import project
from compress_onnx.graph_passes.factorization.symmetric import STEPS_FROM, GramSum, SecondMoment


def decaying(features, seed=0):
    """A covariance whose spectrum falls by four orders of magnitude, scales by two."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(features, features)))[0]
    root = np.geomspace(1, 1e-2, features)[:, None] * basis * np.geomspace(1, 1e-2, features)
    return root.T @ root


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("features", [1, 3, 256, 600])
def test_a_sum_is_that_of_the_products(features, dtype):
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(n, features)).astype(dtype) for n in (5, 1, 7)]
    found = GramSum(features)
    for batch in batches:
        found.add(batch)
    rows = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(found.total(), rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_a_sum_takes_the_wider_type_once_it_is_needed():
    found = GramSum(2)
    found.add(np.ones((1, 2), np.float32))
    found.add(np.full((1, 2), 1e30))
    np.testing.assert_allclose(found.total(), np.full((2, 2), 1e60))


@pytest.mark.parametrize("features", [1, 2, STEPS_FROM - 1])
def test_a_small_matrix_is_as_exact_as_float32(features):
    matrix = decaying(features)
    kept = SecondMoment.of(matrix)
    scale = np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
    assert np.abs(kept.matrix() - matrix).max() <= 1e-7 * scale.max()
    np.testing.assert_allclose(kept.matrix() / scale, matrix / scale, atol=1e-7)
    assert kept.trace == pytest.approx(np.trace(matrix))


def test_a_large_one_takes_an_eighth_and_keeps_what_is_optimal():
    features, outputs, rank = 2 * STEPS_FROM, STEPS_FROM, 64
    matrix = decaying(features)
    kept = SecondMoment.of(matrix)
    assert 8 * (kept.correlations.nbytes + kept.deviations.nbytes) < 1.02 * matrix.nbytes
    np.testing.assert_allclose(kept.matrix().diagonal(), matrix.diagonal(), rtol=1e-12)
    weight = np.random.default_rng(1).normal(size=(features, outputs))
    exact, coarse = project(weight, matrix), project(weight, kept.matrix())

    def lost(basis):
        error = weight - (weight @ basis) @ basis.T
        return np.vdot(error, matrix @ error) / exact.energy

    least = lost(exact.basis(rank))
    assert least == pytest.approx(exact.tail[rank])
    assert lost(coarse.basis(rank)) <= least * (1 + 1e-4)
    assert coarse.tail[rank] == pytest.approx(exact.tail[rank], rel=1e-3)


def test_what_never_varies_stays_at_zero():
    matrix = np.diag([0.0, 4.0, 0.0])
    np.testing.assert_array_equal(SecondMoment.of(matrix).matrix(), matrix)
