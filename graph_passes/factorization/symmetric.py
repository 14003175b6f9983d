"""Symmetric matrices in little memory: sums of ``xᵀx``, and second moments at rest.

A sum (:class:`GramSum`) has the upper triangle alone, in blocks of rows, in the precision of what
is added: half of a matrix of float32.

At rest (:class:`SecondMoment`) a matrix C, which is positive semi-definite, is kept as its
deviations and the correlations above the diagonal::

    C_ij = d_i d_j R_ij        d_i = √C_ii  in float64        |R_ij| ≤ 1

From 256 features on, R is in steps of 2⁻¹⁵, 16 bits: an eighth of C in float64. What is lost at a
rank changes by about a millionth of all there is, less than samples leave open. Smaller matrices
take little, and are in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Float64, Floats, Stored

STEPS_FROM = 256
"""So many features have their correlations in 16 bits."""

_BLOCK = 256
_STEPS = 2**15 - 1


class GramSum:
    """The sum of ``xᵀx`` over arrays x ``[n, K]``.

    Args:
        features: K.
    """

    def __init__(self, features: int) -> None:
        self._features = features
        starts = range(0, features, _BLOCK)
        self._blocks: list[Floats] = [
            np.zeros((min(_BLOCK, features - start), features - start), np.float32)
            for start in starts
        ]

    def add(self, x: Floats) -> None:
        """Add ``xᵀx`` of x ``[n, K]``, which overflows neither here nor in the sum."""
        for index, start in enumerate(range(0, self._features, _BLOCK)):
            block = self._blocks[index]
            product = x[:, start : start + len(block)].T @ x[:, start:]  # [block, K - start]
            if product.dtype == block.dtype:
                block += product
            else:
                self._blocks[index] = block + product

    def merge(self, later: GramSum, unit: float = 1.0) -> None:
        """Add another sum, times ``unit``."""
        pairs = zip(self._blocks, later._blocks, strict=True)
        self._blocks = [ours + float(unit) * theirs for ours, theirs in pairs]

    def total(self) -> Float64:
        """``[K, K]``."""
        full = np.zeros((self._features,) * 2)
        for start, block in zip(range(0, self._features, _BLOCK), self._blocks, strict=True):
            full[start : start + len(block), start:] = block
            full[start:, start : start + len(block)] = block.T
        return full


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """A positive semi-definite matrix as its correlations.

    Attributes:
        deviations: ``[K]``.
        correlations: ``[K(K − 1)/2]`` those above the diagonal, row by row; int16 in steps. Read
            anew each time where they are no array, but lie in a file.
    """

    deviations: Float64
    correlations: Stored

    @classmethod
    def of(cls, matrix: Float64) -> SecondMoment:
        """``matrix`` [K, K]."""
        size = len(matrix)
        deviations = np.sqrt(np.maximum(matrix.diagonal(), 0.0))
        units = np.divide(1.0, deviations, out=np.zeros(size), where=deviations > 0)
        steps = size >= STEPS_FROM
        correlations = np.empty(size * (size - 1) // 2, np.int16 if steps else np.float32)
        for row, part in _rows(size):
            exact = matrix[row, row + 1 :] * units[row] * units[row + 1 :]
            correlations[part] = np.rint(np.clip(exact, -1, 1) * _STEPS) if steps else exact
        return cls(deviations, correlations)

    def __len__(self) -> int:
        """K."""
        return len(self.deviations)

    @property
    def trace(self) -> float:
        """The sum of the diagonal."""
        return float(self.deviations @ self.deviations)

    def matrix(self) -> Float64:
        """``[K, K]`` anew each time."""
        correlations = np.asarray(self.correlations)
        unit = 1 / _STEPS if correlations.dtype == np.int16 else 1.0
        full = np.zeros((len(self),) * 2)
        for row, part in _rows(len(self)):
            scale = unit * self.deviations[row] * self.deviations[row + 1 :]
            full[row, row + 1 :] = correlations[part] * scale
        full += full.T
        np.fill_diagonal(full, self.deviations**2)
        return full


def ridged(matrix: Float64, ridge: float) -> Float64:
    """``matrix`` [K, K] with ``ridge`` more on its diagonal, and nothing else of that size."""
    damped = matrix.copy()
    damped.flat[:: len(matrix) + 1] += ridge
    return damped


def _rows(size: int) -> Iterator[tuple[int, slice]]:
    """Each row of a matrix, and where its numbers above the diagonal are."""
    start = 0
    for row in range(size):
        stop = start + size - row - 1
        yield row, slice(start, stop)
        start = stop
