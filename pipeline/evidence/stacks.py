"""What of a value belongs to which matrix of a stack."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array", bound=NDArray[np.generic])


def part(value: Array, leading: tuple[int, ...], place: tuple[int, ...]) -> Array:
    """What one matrix of a stack multiplies, or what comes of that.

    Args:
        value: ``[..., *leading, T, F]``, or anything that a product with the stack broadcasts to
            that.
        leading: the shape of the stack without its last two axes; ``()`` for a plain matrix.
        place: of the matrix in it.

    Returns:
        ``[..., T, F]``; for a plain matrix the value itself.
    """
    if not leading:
        return value
    full = np.broadcast_to(value, np.broadcast_shapes(value.shape, (*leading, 1, 1)))
    # Along an axis on which the stack has one matrix, that multiplies all there is.
    axes = [slice(None) if size == 1 else at for size, at in zip(leading, place, strict=True)]
    matrix: tuple[Any, ...] = (..., *axes, slice(None), slice(None))
    return cast("Array", full[matrix])
