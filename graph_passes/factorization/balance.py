"""Balance a pair of factors: the same product, its scale shared out between the two.

Each rank index by itself, ``down·diag(s)`` and ``diag(1/s)·up``, which changes nothing but scale:

* :func:`equal_norms`: s makes the norms of each column of ``down`` and row of ``up`` equal;
* :func:`within`: s makes their largest numbers equal where one of them would overflow, which is
  where they fit into a type if any s makes them.

All of them together (:func:`balanced`): with left = Q₁R₁ and rightᵀ = Q₂R₂, the SVD
R₁R₂ᵀ = P·S·Oᵀ gives::

    left·right = (Q₁·P·S^½) · (S^½·Oᵀ·Q₂ᵀ)

Both new factors have the singular values S^½, so a step of gradient descent moves the product by
as much through one as through the other; left as most methods leave them, one of the two is
orthonormal and holds none of the weight's scale.
"""

from __future__ import annotations

import numpy as np

from compress_onnx.graph_passes.arrays import Bools, Float64, Floats


def balanced(left: Floats, right: Floats) -> tuple[Float64, Float64]:
    """Factors with the same product and equal singular values.

    Args:
        left: ``[..., K, r]``.
        right: ``[..., r, N]``, with r at most K and N for a pair of the same shapes.

    Returns:
        ``[..., K, r]`` and ``[..., r, N]``; where r exceeds K or N, the factors as they were.
    """
    first, second = left.astype(np.float64), right.astype(np.float64)
    if left.shape[-1] > min(left.shape[-2], right.shape[-1]):
        return first, second
    q_left, r_left = np.linalg.qr(first)
    q_right, r_right = np.linalg.qr(np.swapaxes(second, -1, -2))
    p, s, o = np.linalg.svd(r_left @ np.swapaxes(r_right, -1, -2))
    root = np.sqrt(s)
    return (
        (q_left @ p) * root[..., None, :],
        root[..., :, None] * (o @ np.swapaxes(q_right, -1, -2)),
    )


def equal_norms(down: Float64, up: Float64) -> tuple[Float64, Float64]:
    """``down`` [K, r] and ``up`` [r, N] with equal norms at each rank index."""
    return _shared_out(down, up, np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1))


def within(down: Float64, up: Float64, dtype: np.dtype[np.generic]) -> tuple[Float64, Float64]:
    """``down`` [K, r] and ``up`` [r, N], balanced at the rank indices that overflow ``dtype``."""
    ours, theirs = np.abs(down).max(axis=0), np.abs(up).max(axis=1)  # [r]
    fit = _fit(ours, dtype) & _fit(theirs, dtype)
    if fit.all():
        return down, up
    return _shared_out(down, up, np.where(fit, 1.0, ours), np.where(fit, 1.0, theirs))


def _fit(numbers: Float64, dtype: np.dtype[np.generic]) -> Bools:
    with np.errstate(over="ignore"):
        return np.isfinite(numbers.astype(dtype).astype(np.float64))


def _shared_out(
    down: Float64, up: Float64, ours: Float64, theirs: Float64
) -> tuple[Float64, Float64]:
    """The factors, their sizes ``ours`` and ``theirs`` [r] made equal where neither is zero."""
    positive = (ours > 0) & (theirs > 0)
    scale = np.sqrt(np.divide(theirs, ours, out=np.ones_like(ours), where=positive))
    scale[~positive] = 1.0
    return down * scale, up / scale[:, None]
