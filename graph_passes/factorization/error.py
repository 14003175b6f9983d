"""How far a factorization is from its weight, beside the least that is possible at its rank."""

from __future__ import annotations

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.activations import Known
from compress_onnx.graph_passes.factorization.base import Decomposition, Factorization
from compress_onnx.graph_passes.factorization.projection import squared_spectrum
from compress_onnx.graph_passes.factorization.stack import row_shares


def least_errors(weight: Array, known: Known, found: Decomposition | None = None) -> Float64:
    """The least squared error that any factors of ``weight`` can have, at each rank (Eckart-Young).

    Args:
        weight: ``[.., K, N]``.
        known: about the inputs of each matrix; None everywhere for the error of the weight itself.
        found: the decomposition of ``weight`` in that very metric, where there is one already.

    Returns:
        ``[q + 1]``: the minimum of ``‖X(W − B)‖_F²`` with X [count, K] centred, summed over the
        matrices of a stack, or of ``‖W − B‖_F²``; at rank 0 that is all there is.
    """
    rows = [stats.count for stats in known if stats is not None]
    if found is not None:
        return (sum(rows) if rows else 1) * found.energy * found.tail
    matrices = weight.reshape(-1, *weight.shape[-2:])
    least = np.zeros(min(matrices.shape[1:]) + 1)
    for matrix, stats in zip(matrices, known, strict=True):
        if stats is not None:
            least += stats.count * _left(squared_spectrum(matrix, stats.covariance))
        elif not rows:
            least += _left(squared_spectrum(matrix))
    return least


def _left(spectrum: Float64) -> Float64:
    """``[q + 1]`` what is left of ``spectrum`` [q], largest first, beyond each rank."""
    return np.concatenate([np.cumsum(spectrum[::-1])[::-1], [0.0]])


def weight_error(weight: Array, factorization: Factorization) -> float:
    """``‖W − AB‖_F / ‖W‖_F`` with the factors as stored; 0 for a zero weight."""
    exact = weight.astype(np.float64)
    return _ratio(_norm2(_residual(exact, factorization)), _norm2(exact))


def activation_error(weight: Array, factorization: Factorization, known: Known) -> float:
    """``‖X(W − AB)‖_F / ‖XW‖_F`` with X centred; 0 where the inputs never vary.

    Both norms are over all matrices of a stack, each with its own rows X; one that nothing is known
    about has none.
    """
    exact = weight.astype(np.float64)
    matrices = exact.reshape(-1, *exact.shape[-2:])
    residuals = _residual(exact, factorization).reshape(matrices.shape)
    lost = whole = 0.0
    for matrix, residual, stats, share in zip(
        matrices, residuals, known, row_shares(known), strict=True
    ):
        if stats is not None:
            metric = stats.covariance
            lost += share * _norm2(residual, metric)
            whole += share * _norm2(matrix, metric)
    return _ratio(lost, whole)


def _residual(exact: Float64, factorization: Factorization) -> Float64:
    product = factorization.product()
    return np.subtract(exact, product, out=product)


def _norm2(matrix: Float64, metric: Float64 | None = None) -> float:
    if metric is None:
        return float(np.vdot(matrix, matrix))
    return max(float(np.vdot(matrix, metric @ matrix)), 0.0)


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0
