"""How far two arrays are from each other, in one number."""

from __future__ import annotations

import math

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64

_FAR_LARGER = 1000


def relative_error(reference: Array, candidate: Array) -> float:
    """The norm of the difference over that of the reference, in float64.

    Numbers a thousand times larger than most, such as −10,000 or the least float at masked
    positions, would hide all others: they are compared by themselves, and the larger error counts.

    Infinite where the two cannot be compared: another number of elements, or NaN or infinity where
    the other has something else. Integers and booleans are equal (0) or not (infinite).
    """
    if reference.size != candidate.size:
        return math.inf
    one, other = reference.reshape(-1), candidate.reshape(-1)
    if not (is_float(one) and is_float(other)):
        return 0.0 if np.array_equal(one, other) else math.inf
    a, b = _float64(one), _float64(other)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    a, b = a[finite], b[finite]
    typical = float(np.median(np.abs(a[a != 0]))) if a.any() else 0.0
    large = np.abs(a) > _FAR_LARGER * typical
    return max(_of_norms(a[part], b[part]) for part in (~large, large))


def _of_norms(one: Float64, other: Float64) -> float:
    norm, difference = float(np.linalg.norm(one)), float(np.linalg.norm(one - other))
    return difference / norm if norm else (0.0 if not difference else math.inf)


def _float64(array: Array) -> Float64:
    return array.astype(np.float64)


def is_float(array: Array) -> bool:
    """Whether the elements are floating-point numbers, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
