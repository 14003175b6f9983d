"""Gathers the statistics of rows batch by batch, each row with a weight.

With batches b of weight w_b and mean μ_b ::

    w C = Σ_b Σ_{x in b} (x − μ_b)(x − μ_b)ᵀ  +  Σ_b w_b (μ_b − μ)(μ_b − μ)ᵀ

(Chan, Golub and LeVeque 1983): around zero, ``E[x xᵀ] − μμᵀ`` would lose twice the digits that the
mean is larger than the deviation. Weights are in units of the first batch's largest.

Rows may be collected in several parts, elsewhere: parts are merged, in the end.

The products of a batch are computed and added up in the precision of its rows, at least float32,
and in float64 where squares overflow; all else is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64, Floats
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.graph_passes.factorization.activations import ActivationStats
from compress_onnx.graph_passes.factorization.symmetric import GramSum

_BLOCK = 384
"""Rows of a product at a time."""

_SAFE = 1e30
"""Sums of squares up to this cannot overflow float32, however many batches come."""


class MomentAccumulator:
    """Collects :class:`~graph_passes.factorization.activations.ActivationStats`.

    Args:
        features: K.
        name: what the rows are of, for errors.
    """

    def __init__(self, features: int, name: str = "a value inside the model") -> None:
        self._rows = Rows(features, name)
        self._moment = GramSum(features)

    @property
    def count(self) -> int:
        """Rows seen so far."""
        return self._rows.count

    @property
    def rows(self) -> Rows:
        """The rows so far."""
        return self._rows

    def update(self, rows: Array, weights: Array | None = None) -> None:
        """Add ``rows`` of shape [n, K], each with its weight (``[n]``, none negative) or 1.

        Raises:
            DataError: a number is NaN or infinite.
        """
        if len(rows):
            w = np.ones(len(rows)) if weights is None else weights.astype(np.float64)
            self.add(self._rows.add(rows, w))

    def add(self, scaled: Floats) -> None:
        """Add the products of what :attr:`rows` made ``[n, K]`` of rows."""
        self._moment.add(scaled)

    def merge(self, later: MomentAccumulator) -> None:
        """Add what ``later`` collected, which is used up.

        The sums have the same value as if all rows had been added here, to rounding.
        """
        if not later.count:
            return
        self._moment.merge(later._moment, self._rows.merge(later._rows))

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
            return ActivationStats(rows.count, zero, zero, np.zeros((len(zero),) * 2))
        covariance = self._moment.total()
        covariance += rows.between(rows)
        covariance /= rows.weight
        return ActivationStats(rows.count, rows.mean, rows.magnitude / rows.weight, covariance)


@dataclass(frozen=True)
class PairedStats:
    """Statistics of a value x', and how another value y, row by row beside it, goes along with it.

    Attributes:
        first: of x'.
        second_mean: ``[M]`` the mean of y.
        cross: ``[K, M]`` the centred ``E[x' yᵀ]``.
    """

    first: ActivationStats
    second_mean: Float64
    cross: Float64

    def through(self, weight: Array) -> PairedStats:
        """The same of y·W, with W [M, N], in place of y."""
        exact = weight.astype(np.float64)
        return replace(self, second_mean=self.second_mean @ exact, cross=self.cross @ exact)

    def shrunk(self, strength: float, weight: Array) -> PairedStats:
        """The same with rows x', uncorrelated and of equal size, for ``strength`` of them.

        Args:
            strength: 0 leaves them as they are.
            weight: ``[K, M]``, which makes y = x'·W of these rows.
        """
        if not strength:
            return self
        level = float(np.trace(self.first.covariance)) / len(self.cross)
        return replace(
            self,
            first=self.first.shrunk(strength),
            cross=(1 - strength) * self.cross + strength * level * weight.astype(np.float64),
        )


class PairedAccumulator:
    """Collects :class:`PairedStats`.

    Args:
        features: K of x'.
        others: M of y; None where it is K, too.
        name: what the rows are of, for errors.
    """

    def __init__(
        self, features: int, others: int | None = None, name: str = "a value inside the model"
    ) -> None:
        others = features if others is None else others
        self._first = MomentAccumulator(features, name)
        self._second = Rows(others, name)
        self._cross: Floats = np.zeros((features, others), np.float32)

    def update(self, first: Array, second: Array, weights: Array) -> None:
        """Add the rows ``first`` [n, K] and ``second`` [n, M], with weights ``[n]``.

        Raises:
            DataError: a number is NaN or infinite.
        """
        for job in self.jobs(first, second, weights):
            job()

    def jobs(self, first: Array, second: Array, weights: Array) -> list[Callable[[], None]]:
        """As :meth:`update`, in parts that may be done side by side, all before the next rows.

        Raises:
            DataError: a number is NaN or infinite.
        """
        if not len(first):
            return []
        w = weights.astype(np.float64)
        ours, theirs = self._first.rows.add(first, w), self._second.add(second, w)
        dtype = np.result_type(ours, theirs, self._cross)
        self._cross = self._cross.astype(dtype, copy=False)

        def add(start: int) -> None:
            block = slice(start, start + _BLOCK)
            self._cross[block] += ours[:, block].T @ theirs  # [block, M]

        starts = range(0, len(self._cross), _BLOCK)
        return [partial(self._first.add, ours), *(partial(add, start) for start in starts)]

    def result(self) -> PairedStats:
        """The statistics so far; all zero where every weight was, or no row was seen."""
        rows, (features, others) = self._second, self._cross.shape
        if not rows.weight:
            zero = np.zeros(features)
            first = ActivationStats(rows.count, zero, zero, np.zeros((features, features)))
            return PairedStats(first, np.zeros(others), np.zeros((features, others)))
        first = self._first.result()
        cross = (self._cross + self._first.rows.between(rows)) / rows.weight
        return PairedStats(first, rows.mean, cross)


class Rows:
    """The mean of rows, and the rows around the mean of their batch.

    Attributes:
        count: rows seen.
        magnitude: ``[K]`` the weighted sum of their absolute values.
    """

    def __init__(self, features: int, name: str) -> None:
        self._name = name
        self._unit = 0.0
        self._origin: Float64 | None = None
        self._means: list[Float64] = []  # around the origin
        self._offs: list[Float64] = []
        self._weights: list[float] = []
        self.count = 0
        self.magnitude = np.zeros(features)

    def add(self, rows: Array, weights: Float64) -> Floats:
        """Add ``rows`` of shape [n, K], one at least, with weights ``[n]``.

        Returns:
            ``[n, K]`` the rows around their mean, each times the root of its weight.
        """
        dtype = np.promote_types(rows.dtype, np.float32)
        x = rows.astype(dtype, copy=False)
        self._unit = self._unit or float(weights.max())
        w = (weights / (self._unit or 1.0)).astype(dtype)  # [n]
        weight = float(w.sum(dtype=np.float64))
        self.count += len(x)
        self.magnitude += w @ np.abs(x)
        if not np.isfinite(self.magnitude).all():
            raise DataError(
                f"{self._name} is NaN or infinite on these samples: leave out those on which the "
                "model overflows, or export it with a wider dtype"
            )
        # The mean in the rows' own precision, and what that is off by.
        near = (w @ x / weight).astype(dtype) if weight else x[0]
        x = x - near
        off = (w @ x).astype(np.float64) / (weight or 1.0)
        if self._origin is None:
            self._origin = near.astype(np.float64)
        self._means.append(near - self._origin + off)
        self._offs.append(off)
        self._weights.append(weight)
        x *= np.sqrt(w)[:, None]
        safe: Floats = x if np.vdot(x, x) < _SAFE else x.astype(np.float64)
        return safe

    def merge(self, later: Rows) -> float:
        """Add the rows of ``later``; returns what a unit of its weights is in units of these."""
        if self._origin is None:
            self._unit, self._origin = later._unit, later._origin
        self._unit = self._unit or later._unit
        unit = later._unit / self._unit if later._unit else 1.0
        assert self._origin is not None
        assert later._origin is not None
        apart = later._origin - self._origin
        self.count += later.count
        self.magnitude += unit * later.magnitude
        self._means += [mean + apart for mean in later._means]
        self._offs += later._offs
        self._weights += [unit * weight for weight in later._weights]
        return unit

    @property
    def weight(self) -> float:
        """The sum of the weights, in units."""
        return sum(self._weights)

    @property
    def mean(self) -> Float64:
        """``[K]``."""
        assert self._origin is not None
        return self._origin + self._offset

    @property
    def _offset(self) -> Float64:
        offset: Float64 = np.asarray(self._weights) @ np.stack(self._means) / self.weight
        return offset

    def between(self, other: Rows) -> Float64:
        """``[K, M]`` how the means of the batches vary, beside those of ``other``, of M features.

        Less what products of the rows around their means have too much, as these were rounded.
        """
        weights = np.asarray(self._weights)[:, None]
        ours, theirs = (np.stack(r._means) - r._offset for r in (self, other))
        product: Float64 = (weights * ours).T @ theirs
        product -= (weights * np.stack(self._offs)).T @ np.stack(other._offs)
        return product
