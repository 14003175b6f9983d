"""How far a factorization is from its weight, beside the least that is possible at its rank."""

from __future__ import annotations

import numpy as np

from graph_passes.factorization.activations import ActivationStats
from graph_passes.factorization.asvd import ASVD
from graph_passes.factorization.base import Array, Decomposition, Factorization, Float64
from graph_passes.factorization.stack import decompose
from graph_passes.factorization.svd import SVD


def least_errors(
    weight: Array, stats: ActivationStats | None, known: Decomposition | None = None
) -> Float64:
    """The least squared error that any factors of ``weight`` can have, at each rank (Eckart-Young).

    Args:
        weight: ``[.., K, N]``; a stack has no ``stats``.
        stats: of the inputs; None for the error of the weight itself.
        known: the decomposition of ``weight`` in that very metric, where there is one already.

    Returns:
        ``[q + 1]``: the minimum of ``‖X(W − B)‖_F²`` with X [count, K] centred, or of
        ``‖W − B‖_F²``; at rank 0 that is all there is.
    """
    found = known or decompose(SVD() if stats is None else ASVD(), weight, stats)
    rows = 1 if stats is None else stats.count
    return rows * found.energy * found.tail


def weight_error(weight: Array, factorization: Factorization) -> float:
    """``‖W − AB‖_F / ‖W‖_F`` with the factors as stored; 0 for a zero weight."""
    exact = weight.astype(np.float64)
    return _ratio(_norm2(_residual(exact, factorization)), _norm2(exact))


def activation_error(weight: Array, factorization: Factorization, stats: ActivationStats) -> float:
    """``‖X(W − AB)‖_F / ‖XW‖_F`` with X centred; 0 where the inputs never vary."""
    exact = weight.astype(np.float64)
    metric = stats.covariance
    return _ratio(_norm2(_residual(exact, factorization), metric), _norm2(exact, metric))


def _residual(exact: Float64, factorization: Factorization) -> Float64:
    product = factorization.product()
    return np.subtract(exact, product, out=product)


def _norm2(matrix: Float64, metric: Float64 | None = None) -> float:
    if metric is None:
        return float(np.vdot(matrix, matrix))
    return max(float(np.vdot(matrix, metric @ matrix)), 0.0)


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0
