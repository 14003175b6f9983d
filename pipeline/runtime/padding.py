"""Where padding is: how the mask ``[B, T]`` of a batch applies to the values of a model.

A value belongs to positions in one of two layouts, and to nothing that the mask knows in all
others (pooled vectors ``[B, D]``, attention scores ``[B, heads, T, T]``, rows of an expert)::

    [B, T, ...]        as most exporters write it
    [B·T, ...]         flattened in front of a product

Shapes are all that is looked at. A caller that knows better, because a graph fixes an axis that
has the mask's size by accident, does not ask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Mask = NDArray[np.bool_]


def by_position(value: Array, mask: Mask) -> Array | None:
    """``value`` as ``[B, T, ...]``; None where it does not belong to positions.

    Args:
        value: ``[B, T, ...]``, ``[B·T, ...]``, or anything.
        mask: ``[B, T]``, True for real positions.
    """
    if value.shape[:2] == mask.shape:
        return value
    return value.reshape(*mask.shape, *value.shape[1:]) if is_flattened(value, mask) else None


def is_flattened(value: Array, mask: Mask) -> bool:
    """Whether ``value`` is ``[B·T, ...]`` for a mask ``[B, T]``."""
    return value.ndim > 0 and value.shape[:2] != mask.shape and len(value) == mask.size


def real_positions(value: Array, mask: Mask) -> Mask | None:
    """Which rows of ``value``, vectors along its last axis, are no padding.

    Args:
        value: ``[B, T, ..., K]``, or ``[B·T, K]``.
        mask: ``[B, T]``, True for real positions.

    Returns:
        Booleans of the shape of ``value`` without its last axis; None where the mask does not fit.
    """
    if value.ndim >= 3 and value.shape[:2] == mask.shape:
        trailing = (1,) * (value.ndim - 3)
        return np.broadcast_to(mask.reshape(*mask.shape, *trailing), value.shape[:-1])
    return mask.reshape(-1) if value.ndim == 2 and is_flattened(value, mask) else None


def real_weights(value: Array, mask: Mask | None) -> NDArray[np.float32]:
    """1 for the real rows of ``value`` and 0 for padding; 1 throughout where no mask fits.

    Args:
        value: ``[..., K]``.
        mask: ``[B, T]``, or None where nothing is padded.

    Returns:
        Numbers of the shape of ``value`` without its last axis.
    """
    real = None if mask is None else real_positions(value, mask)
    return np.ones(value.shape[:-1], np.float32) if real is None else real.astype(np.float32)


def used_columns(mask: Mask, multiple: int = 1) -> slice:
    """The columns of ``mask`` [B, T] between the first and the last real position of any row.

    The first column where all is padding, as no model takes a length of zero. As many more as make
    their number a multiple of ``multiple``, where there are so many.
    """
    used = np.flatnonzero(mask.any(axis=0))
    start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    wanted = stop - start + -(stop - start) % multiple
    stop = min(start + wanted, mask.shape[1])
    return slice(max(0, stop - wanted), stop)


def repeated_positions(mask: Mask, width: int) -> NDArray[np.intp]:
    """``[B, width]``: each row's real positions, over and over until the width is full.

    Args:
        mask: ``[B, T]``; a row without a real position gives all that it has.
        width: of what is asked for.
    """
    positions = [np.flatnonzero(row) if row.any() else np.arange(len(row)) for row in mask]
    return np.stack([np.resize(real, width) for real in positions])
