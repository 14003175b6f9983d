"""Balance a pair of factors: the same product, with norms shared out equally.

With left = Q₁R₁ and rightᵀ = Q₂R₂, the SVD R₁R₂ᵀ = P·S·Oᵀ gives::

    left·right = (Q₁·P·S^½) · (S^½·Oᵀ·Q₂ᵀ)

Both new factors have the singular values S^½, so a step of gradient descent moves the product by
as much through one as through the other; left as most methods leave them, one of the two is
orthonormal and holds none of the weight's scale.
"""

from __future__ import annotations

import numpy as np

from compress_onnx.graph_passes.arrays import Float64, Floats


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
