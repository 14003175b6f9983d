"""The one optimum behind every one-shot method: projection on a right subspace.

For a weight W [K, N] and a positive semi-definite metric C [K, K], the problem

    min over rank-r B of  tr((W − B)ᵀ C (W − B))

is solved by ``B = W Q Qᵀ`` where the columns of Q [N, r] are the leading right singular vectors of
``C^½ W`` (Eckart-Young in the metric C; C = I gives the truncated SVD). So ``down = W Q`` and
``up = Qᵀ``. C is never inverted: a singular C needs no damping. The error at rank r is the tail of
the spectrum, so one decomposition gives every rank and the exact error of each.

The spectrum comes from a symmetric eigenproblem in float64 on the smaller side, several times
cheaper than an SVD: of ``WᵀCW`` where that is N, so that nothing of size K is solved. Squared
singular values are then exact to ``1e-16`` of the largest, relative errors to about ``1e-8``: far
below what float32 factors can express.

Directions that the metric does not see (C singular, for instance fewer calibration rows than K)
are ordered by what they hold of W itself, so a rank beyond rank(C^½ W) still improves the weight
and full rank reproduces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization.activations import square_root

_UNSEEN = 1e-13
"""Squared singular values below this share of the largest are rounding noise."""


@dataclass(frozen=True)
class Projection:
    """Nested optimal subspaces of one weight in one metric.

    Attributes:
        weight: ``[K, N]`` what was decomposed.
        seen: ``[N, s]`` orthonormal right singular directions with a non-vanishing singular value,
            most important first; s <= q = min(K, N).
        tail: ``[q + 1]`` squared error left at each rank, relative to rank 0; 1 at rank 0.
        energy: the squared error at rank 0, ``tr(WᵀCW)``.
    """

    weight: Float64
    seen: Float64
    tail: Float64
    energy: float

    def basis(self, rank: int) -> Float64:
        """``[N, rank]`` the orthonormal basis on which to project at ``rank``."""
        return self.seen[:, :rank] if rank <= self.seen.shape[1] else self._complete[:, :rank]

    @cached_property
    def _complete(self) -> Float64:
        """``[N, q]``: ``seen``, then the directions that hold most of what is left of W."""
        residual = self.weight - (self.weight @ self.seen) @ self.seen.T
        unseen = linalg.svd(residual, full_matrices=False)[2].T
        missing = min(self.weight.shape) - self.seen.shape[1]
        return np.linalg.qr(np.hstack([self.seen, unseen[:, :missing]]))[0]


def project(weight: Array, metric: Float64 | None = None) -> Projection:
    """Find the optimal right subspaces of ``weight`` [K, N].

    Args:
        weight: ``[K, N]`` of any float dtype; the arithmetic is float64.
        metric: C: ``[K, K]``, ``[K]`` for a diagonal one, None for the identity.

    Raises:
        ValueError: shapes do not agree.
    """
    exact = weight.astype(np.float64)
    rows, columns = exact.shape
    if metric is not None and metric.shape not in {(rows,), (rows, rows)}:
        raise ValueError(f"a metric of shape {metric.shape} does not fit a weight {weight.shape}")
    tall = columns <= rows
    if tall:
        energy, vectors = _descending(_seen(exact, metric))
        seen_by_metric = exact
    else:
        seen_by_metric = _halved(exact, metric)  # [K, N]
        energy, vectors = _descending(seen_by_metric @ seen_by_metric.T)
    rank = int(np.count_nonzero(energy > _UNSEEN * energy[0]))
    vectors = vectors[:, :rank]
    seen = vectors if tall else np.linalg.qr(seen_by_metric.T @ vectors)[0]
    return Projection(exact, seen, tail_of(energy), float(energy.sum()))


def squared_spectrum(weight: Array, covariance: Float64 | None = None) -> Float64:
    """``[q]`` the squared singular values of ``C^½ W``, largest first, without their vectors.

    NaN throughout where the weight is not finite.

    Args:
        weight: ``[K, N]``.
        covariance: ``[K, K]`` C; None for the identity.
    """
    exact = weight.astype(np.float64)
    rows, columns = exact.shape
    if not np.isfinite(exact).all():
        return np.full(min(rows, columns), np.nan)
    if columns <= rows:
        seen = _seen(exact, covariance)
    else:
        halved = _halved(exact, covariance)
        seen = halved @ halved.T  # [K, K]
    return np.asarray(np.maximum(np.linalg.eigvalsh(seen)[::-1], 0.0), np.float64)


def _seen(exact: Float64, metric: Float64 | None) -> Float64:
    """``[N, N]`` ``WᵀCW``: no root of C, which is the larger side, is needed."""
    if metric is None:
        return exact.T @ exact
    product: Float64 = exact.T @ (metric[:, None] * exact if metric.ndim == 1 else metric @ exact)
    return (product + product.T) / 2


def _halved(exact: Float64, metric: Float64 | None) -> Float64:
    """``[K, N]`` ``C^½ W``."""
    if metric is None:
        return exact
    if metric.ndim == 1:
        return np.sqrt(metric)[:, None] * exact
    return square_root(metric) @ exact


def _descending(matrix: Float64) -> tuple[Float64, Float64]:
    """Eigenvalues, largest first and none negative, and their eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def tail_of(energy: Float64) -> Float64:
    """``[q + 1]`` share of ``energy`` [q], largest first, beyond each rank; zeros if none is."""
    left = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    return left / left[0] if left[0] > 0 else left
