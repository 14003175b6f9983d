"""Gathers the statistics of rows batch by batch, each row with a weight.

Sums are taken around the mean s of the first rows that come, as
``E[(x − s)(x − s)ᵀ] − (μ − s)(μ − s)ᵀ``: around zero, ``E[x xᵀ] − μμᵀ`` would lose twice the digits
that the mean is larger than the deviation. Weights are in units of the first batch's largest.

The products of a batch are computed in the precision of its rows, at least float32, and in float64
where squares overflow; they are summed in float64. (``xᵀ x`` of one array is BLAS ``syrk``: numpy
sees to it, and lets other threads run meanwhile.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64, Floats
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.graph_passes.factorization.activations import ActivationStats


class MomentAccumulator:
    """Collects :class:`~graph_passes.factorization.activations.ActivationStats`.

    Args:
        features: K.
        name: what the rows are of, for errors.
    """

    def __init__(self, features: int, name: str = "a value inside the model") -> None:
        self._rows = _Rows(features, name)
        self._moment = np.zeros((features, features))

    @property
    def count(self) -> int:
        """Rows seen so far."""
        return self._rows.count

    @property
    def offset(self) -> Float64:
        """``[K]`` how far the mean lies off the shift."""
        return self._rows.offset

    def update(self, rows: Array, weights: Array | None = None) -> None:
        """Add ``rows`` of shape [n, K], each with its weight (``[n]``, none negative) or 1.

        Raises:
            DataError: a number is NaN or infinite.
        """
        if len(rows):
            self.add(rows, np.ones(len(rows)) if weights is None else weights.astype(np.float64))

    def add(self, rows: Array, weights: Float64) -> Floats:
        """As :meth:`update` with one row at least; returns what the moment was made of.

        Returns:
            ``[n, K]`` the rows around the shift, each times the root of its weight.
        """
        scaled = self._rows.add(rows, weights)
        self._moment += scaled.T @ scaled
        return scaled

    def result(self) -> ActivationStats:
        """The statistics so far; all zero where every weight was.

        Raises:
            ValueError: no rows were seen.
        """
        rows = self._rows
        if not rows.count:
            raise ValueError("no rows were seen")
        if not rows.weight:
            zero = np.zeros_like(rows.magnitude)
            return ActivationStats(rows.count, zero, zero, np.zeros_like(self._moment))
        covariance = self._moment / rows.weight - np.outer(rows.offset, rows.offset)
        return ActivationStats(rows.count, rows.mean, rows.magnitude / rows.weight, covariance)


@dataclass(frozen=True)
class PairedStats:
    """Statistics of a value x', and how another value x, row by row beside it, goes along with it.

    Attributes:
        first: of x'.
        second_mean: ``[K]`` the mean of x.
        cross: ``[K, K]`` the centred ``E[x' xᵀ]``.
    """

    first: ActivationStats
    second_mean: Float64
    cross: Float64


class PairedAccumulator:
    """Collects :class:`PairedStats`.

    Args:
        features: K of both values.
        name: what the rows are of, for errors.
    """

    def __init__(self, features: int, name: str = "a value inside the model") -> None:
        self._first = MomentAccumulator(features, name)
        self._second = _Rows(features, name)
        self._cross = np.zeros((features, features))

    def update(self, first: Array, second: Array, weights: Array) -> None:
        """Add the rows ``first`` and ``second``, both [n, K], with weights ``[n]``.

        Raises:
            DataError: a number is NaN or infinite.
        """
        if not len(first):
            return
        w = weights.astype(np.float64)
        self._cross += self._first.add(first, w).T @ self._second.add(second, w)

    def result(self) -> PairedStats:
        """The statistics so far; all zero where every weight was, or no row was seen."""
        rows, none = self._second, np.zeros_like(self._cross)
        if not rows.weight:
            zero = np.zeros_like(rows.magnitude)
            return PairedStats(ActivationStats(rows.count, zero, zero, none), zero, none)
        first = self._first.result()
        cross = self._cross / rows.weight - np.outer(self._first.offset, rows.offset)
        return PairedStats(first, rows.mean, cross)


class _Rows:
    """The mean of rows, and the rows around it.

    Attributes:
        count: rows seen.
        weight: the sum of their weights, in units.
        magnitude: ``[K]`` the weighted sum of their absolute values.
    """

    def __init__(self, features: int, name: str) -> None:
        self._name = name
        self._shift: Floats | None = None
        self._unit = 0.0
        self._sum = np.zeros(features)  # around the shift
        self.count = 0
        self.weight = 0.0
        self.magnitude = np.zeros(features)

    def add(self, rows: Array, weights: Float64) -> Floats:
        """See :meth:`MomentAccumulator.add`."""
        dtype = np.promote_types(rows.dtype, np.float32)
        x = rows.astype(dtype, copy=False)
        if self._shift is None:
            # In the rows' own precision: what is near to it loses no digit by the subtraction.
            self._shift = x.mean(axis=0, dtype=np.float64).astype(dtype)
        self._unit = self._unit or float(weights.max())
        w = (weights / (self._unit or 1.0)).astype(dtype)  # [n]
        self.count += len(x)
        self.weight += float(w.sum(dtype=np.float64))
        self.magnitude += w @ np.abs(x)
        if not np.isfinite(self.magnitude).all():
            raise DataError(
                f"{self._name} is NaN or infinite on these samples: leave out those on which the "
                "model overflows, or export it with a wider dtype"
            )
        x = x - self._shift
        self._sum += w @ x
        x *= np.sqrt(w)[:, None]
        safe: Floats = x if np.isfinite(np.vdot(x, x)) else x.astype(np.float64)
        return safe

    @property
    def offset(self) -> Float64:
        """``[K]`` how far the mean lies off the shift."""
        return self._sum / self.weight

    @property
    def mean(self) -> Float64:
        """``[K]``."""
        assert self._shift is not None
        mean: Float64 = self._shift + self.offset
        return mean
