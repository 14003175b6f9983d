"""How far a factorization is from its weight, beside the least that is possible at its rank."""

from __future__ import annotations

import numpy as np

from graph_passes.factorization.activations import ActivationStats
from graph_passes.factorization.base import Array, Factorization, Float64
from graph_passes.factorization.projection import project


def bound(weight: Array, stats: ActivationStats | None) -> Float64:
    """The least relative error that any factorization of ``weight`` [K, N] can have.

    Returns:
        ``[q + 1]`` at each rank: ``‖X(W − B)‖_F / ‖XW‖_F`` of the optimum with X centred, or the
        same without X where there are no statistics.
    """
    root = None if stats is None else stats.root
    return np.sqrt(project(weight, root).tail)


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
