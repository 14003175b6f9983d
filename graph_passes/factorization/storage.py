"""How a file holds factors: in the weight's own type, or rounded to a smaller one.

===========  ==================================================================================
``same``     the weight's own type
``float16``  each number rounded to float16; a weight of 16 bits keeps its type
``int8``     integers of −127 … 127, and one float32 scale for each rank index
``int4``     integers of −7 … 7, and one float32 scale for each rank index
===========  ==================================================================================

With integers P [K, r] and Q [r, N] and scales s, t [r], a term is ``(P·diag(s))·(diag(t)·Q)``.

Rules:

1. A scale belongs to one rank index: to a column of ``down``, to a row of ``up``. So terms can be
   put side by side along the rank, which is what the layout ``merged`` does, and no number changes.
   Blocks along a column would allow that too: on MiniLM's factors, blocks of 64 lowered the error
   of int4 by a tenth, for an eighth more bytes.
2. Zero is stored exactly, and the integers are symmetric around it: no zero points.
3. A scale is that of least squared error among some that clip the largest numbers more or less.
4. What counts is what a graph computes from the file: ``float32(integer)·scale``, then the weight's
   own type. Errors and later stages are measured with these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float32, Float64
from compress_onnx.graph_passes.errors import RequestError

Storage = Literal["same", "float16", "int8", "int4"]
Combine = Callable[[Sequence[Any]], Any]
"""Puts arrays together, such as a concatenation along one axis."""

INTEGERS: Mapping[Storage, int] = {"int8": 127, "int4": 7}
"""The storages that need scales, and the largest integer of each."""
_BYTES: Mapping[Storage, float] = {"int8": 1, "int4": 0.5}
_SCALE_BYTES = 4
_CLIPPING = np.linspace(1.0, 0.3, 15)
"""Rule 3: the largest number that is not clipped, in parts of the largest there is."""


@dataclass(frozen=True)
class Packed:
    """A factor, or a stack of them, as the file holds it.

    Attributes:
        storage: ``float16``, ``int8`` or ``int4``.
        numbers: ``[.., K, r]`` or ``[.., r, N]``: float16, or integers as int8.
        scale: float32 that multiplies integers: ``[.., 1, r]`` or ``[.., r, 1]``.
    """

    storage: Storage
    numbers: Array
    scale: Float32 | None = None

    @property
    def nbytes(self) -> int:
        """What the file holds."""
        bits = 4 if self.storage == "int4" else 8 * self.numbers.itemsize
        scale_bytes = 0 if self.scale is None else self.scale.nbytes
        return math.ceil(self.numbers.size * bits / 8) + scale_bytes

    def values(self, dtype: np.dtype[np.generic]) -> Array:
        """The numbers that a graph of type ``dtype`` computes (rule 4).

        Raises:
            RequestError: the type cannot hold them.
        """
        if self.scale is None:
            return self.numbers.astype(dtype)
        return rounded(self.numbers.astype(np.float32) * self.scale, dtype)

    def transposed(self) -> Packed:
        """The same for the transposed factor."""
        scale = None if self.scale is None else np.swapaxes(self.scale, -1, -2)
        return Packed(self.storage, np.swapaxes(self.numbers, -1, -2), scale)


def pack(
    factor: Float64, storage: Storage, dtype: np.dtype[np.generic], axis: int
) -> Packed | None:
    """Round one factor of a weight of type ``dtype``; None where it is stored as ``dtype``.

    Args:
        factor: ``[K, r]`` or ``[r, N]``.
        storage: how to store it.
        dtype: the weight's type.
        axis: the one that is not the rank.

    Raises:
        RequestError: float16 cannot hold the numbers.
    """
    if narrowest(storage, dtype) == dtype and storage not in INTEGERS:
        return None
    if storage == "float16":
        return Packed(storage, rounded(factor, np.dtype(np.float16)))
    return _integers(factor, storage, axis)


def narrowest(storage: Storage, dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The float type that factors of a weight of type ``dtype`` have to fit into."""
    if storage == "float16" and dtype.itemsize > 2:
        return np.dtype(np.float16)
    return dtype


def rounded(numbers: Float64 | Float32, dtype: np.dtype[np.generic]) -> Array:
    """``numbers`` in ``dtype``.

    Raises:
        RequestError: it cannot hold them: finite numbers would be infinite.
    """
    with np.errstate(over="ignore"):
        found = numbers.astype(dtype)
    if (np.isinf(found.astype(np.float64)) & np.isfinite(numbers)).any():
        raise RequestError(
            f"numbers up to {np.abs(numbers).max():.3g} do not fit into {dtype}: exclude the site, "
            "or store its factors in another way"
        )
    return found


def _integers(factor: Float64, storage: Storage, axis: int) -> Packed:
    limit = INTEGERS[storage]
    largest = np.abs(factor).max(axis=axis, keepdims=True, initial=0.0)
    numbers, scale = np.zeros(factor.shape, np.int8), np.zeros(largest.shape, np.float32)
    least = np.square(factor).sum(axis=axis, keepdims=True)
    for part in _CLIPPING:
        step = (largest * (part / limit)).astype(np.float32)
        exact = np.where(step > 0, step, np.inf).astype(np.float64)
        rounded = np.rint(factor / exact).clip(-limit, limit).astype(np.int8)
        loss = np.square(factor - rounded * step.astype(np.float64)).sum(axis=axis, keepdims=True)
        better = loss < least
        numbers, scale = np.where(better, rounded, numbers), np.where(better, step, scale)
        least = np.minimum(loss, least)
    return Packed(storage, numbers, scale)


def bytes_per_rank(numbers: int, storage: Storage, itemsize: float) -> float:
    """What one rank index of both factors takes in the file, scales included.

    Args:
        numbers: K + N.
        storage: how the factors are stored.
        itemsize: bytes of a number of the weight.
    """
    if storage in INTEGERS:
        return numbers * _BYTES[storage] + 2 * _SCALE_BYTES
    return numbers * (itemsize if storage == "same" else min(itemsize, 2))


def combined(parts: Sequence[Packed], combine: Combine) -> Packed:
    """``parts`` of one storage as one, numbers and scales put together alike (rule 1)."""
    scales = [part.scale for part in parts if part.scale is not None]
    numbers = combine([part.numbers for part in parts])
    return Packed(parts[0].storage, numbers, combine(scales) if scales else None)
