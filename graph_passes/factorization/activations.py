"""Statistics of a site's inputs, streamed: count, mean, mean magnitude and covariance.

With rows x of X [n, K]::

    mean        μ = E[x]                      [K]
    magnitude   E|x|                          [K]
    covariance  C = E[(x − μ)(x − μ)ᵀ]        [K, K]

Everything is float64. Sums are taken around the mean s of the first rows that come, as
``E[(x − s)(x − s)ᵀ] − (μ − s)(μ − s)ᵀ``: around zero, ``E[x xᵀ] − μμᵀ`` would lose twice the digits
that the mean is larger than the deviation. The moment is accumulated as one triangle by BLAS
``syrk``, which does half the work of a product and needs no temporary of its size.

A weight that is a stack of matrices has statistics for each of them (:data:`Known`).

Where gradients g [n, N] of the model's outputs at the site's own output are known as well, rows
are weighted with ‖g‖² and the gradients have a second moment of their own
(:class:`GradientStats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import linalg
from scipy.linalg import blas

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.errors import DataError


def square_root(covariance: Float64) -> Float64:
    """``[K, K]`` S with ``SᵀS`` = covariance; negative eigenvalues are rounding, and count as 0."""
    values, vectors = linalg.eigh(covariance, driver="evd")
    root: Float64 = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return root


@dataclass(frozen=True)
class ActivationStats:
    """What calibration knows about the inputs of one site (or of several that share a weight).

    Attributes:
        count: rows seen.
        mean: ``[K]``.
        magnitude: ``[K]`` mean absolute value.
        covariance: ``[K, K]`` symmetric, the centred second moment.
        gradients: how much the model's outputs depend on the site; None where not differentiated.
    """

    count: int
    mean: Float64
    magnitude: Float64
    covariance: Float64
    gradients: GradientStats | None = None

    @property
    def second_moment(self) -> Float64:
        """``[K, K]`` ``E[x xᵀ]``, not centred."""
        return self.covariance + np.outer(self.mean, self.mean)

    @cached_property
    def root(self) -> Float64:
        """``[K, K]`` S with ``SᵀS`` = covariance; shared by all sites that read the same input."""
        return square_root(self.covariance)

    def uncentred(self) -> ActivationStats:
        """The same with a mean of zero: the metric is the second moment, and no bias is owed."""
        return replace(self, mean=np.zeros_like(self.mean), covariance=self.second_moment)

    @classmethod
    def merge(cls, parts: Iterable[ActivationStats]) -> ActivationStats:
        """The statistics of all rows of ``parts`` together."""
        parts = tuple(parts)
        if len(parts) == 1:
            return parts[0]
        gradients = [part.gradients for part in parts if part.gradients is not None]
        merged = cls._mix(parts, [part.count for part in parts])
        if len(gradients) < len(parts):
            return merged
        return replace(merged, gradients=GradientStats.merge(gradients))

    @classmethod
    def beside(cls, parts: Sequence[ActivationStats]) -> ActivationStats:
        """The statistics of sites that read one input, seen as one site with all their outputs."""
        gradients = [part.gradients for part in parts if part.gradients is not None]
        if len(gradients) < len(parts):
            return replace(parts[0], gradients=None)
        return replace(parts[0], gradients=GradientStats.beside(gradients))

    @classmethod
    def _mix(cls, parts: Sequence[ActivationStats], weights: Sequence[float]) -> ActivationStats:
        total = sum(weights)
        share = [weight / total if total else 1 / len(parts) for weight in weights]
        mixed = list(zip(share, parts, strict=True))
        mean: Float64 = np.sum([w * part.mean for w, part in mixed], axis=0)
        covariance = np.zeros((len(mean),) * 2)
        for w, part in mixed:
            # Around the common mean a part varies by what its own lies off, too.
            offset = part.mean - mean
            covariance += w * (part.covariance + np.outer(offset, offset))
        return cls(
            sum(part.count for part in parts),
            mean,
            np.sum([w * part.magnitude for w, part in mixed], axis=0),
            covariance,
        )


@dataclass(frozen=True)
class GradientStats:
    """What a unit of error at a site's output does to the model's outputs.

    With g the gradient, at the site's output y, of a random projection of the model's outputs, an
    error Δ of the weight changes the outputs by ``Σ (gᵀ Δᵀ x)²`` to second order. Its best cheap
    model is a Kronecker product: inputs weighted with ‖g‖², times the moment of the gradients.

    Attributes:
        inputs: statistics of the site's inputs, each row weighted with its ‖g‖².
        moment: ``[N, N]`` the sum of ``g gᵀ`` over all positions, a sample.
    """

    inputs: ActivationStats
    moment: Float64

    @property
    def strength(self) -> float:
        """The squared norm of the gradients, a sample."""
        return float(np.trace(self.moment))

    @classmethod
    def merge(cls, parts: Sequence[GradientStats]) -> GradientStats:
        """The statistics of several sites that share one weight: their damages add up."""
        inputs = ActivationStats._mix(
            [part.inputs for part in parts], [part.strength for part in parts]
        )
        return cls(inputs, np.sum([part.moment for part in parts], axis=0))

    @classmethod
    def beside(cls, parts: Sequence[GradientStats]) -> GradientStats:
        """The statistics of several sites as one: what their errors do together is left out."""
        inputs = ActivationStats._mix(
            [part.inputs for part in parts], [part.strength for part in parts]
        )
        return cls(inputs, linalg.block_diag(*[part.moment for part in parts]))


Known = Sequence[ActivationStats | None]
"""What is known about each matrix of a weight, in order; one entry for a plain matrix [K, N].

None where nothing is: calibration could not look, or no row reached that matrix of a stack.
"""


class MomentAccumulator:
    """Collects :class:`ActivationStats` batch by batch; rows may have weights.

    Args:
        features: K.
        name: what the rows are of, for errors.
    """

    def __init__(self, features: int, name: str = "a value inside the model") -> None:
        self._name = name
        self._count = 0
        self._weight = 0.0
        self._shift: Float64 | None = None
        self._sum = np.zeros(features)  # around the shift, as the moment
        self._magnitude = np.zeros(features)
        self._moment = np.zeros((features, features), order="F")  # upper triangle

    @property
    def count(self) -> int:
        """Rows seen so far."""
        return self._count

    def update(self, rows: Array, weights: Array | None = None) -> None:
        """Add ``rows`` of shape [n, K], each with its weight (``[n]``, none negative) or 1.

        Raises:
            DataError: a number is NaN or infinite.
        """
        if not len(rows):
            return
        x = np.asarray(rows, dtype=np.float64)
        w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
        magnitude = w @ np.abs(x)
        _check_finite(magnitude, self._name)
        self._count += len(x)
        self._weight += float(w.sum())
        self._magnitude += magnitude
        if self._shift is None:
            self._shift = x.mean(axis=0)
        x = np.ascontiguousarray(x - self._shift)
        self._sum += w @ x
        if weights is not None:
            x *= np.sqrt(w)[:, None]
        self._moment = blas.dsyrk(1.0, x.T, beta=1.0, c=self._moment, overwrite_c=True)

    def result(self) -> ActivationStats:
        """The statistics so far; all zero where every weight was.

        Raises:
            ValueError: no rows were seen.
        """
        if self._shift is None:
            raise ValueError("no rows were seen")
        if not self._weight:
            zero = np.zeros_like(self._sum)
            return ActivationStats(self._count, zero, zero, np.zeros_like(self._moment))
        upper = np.triu(self._moment)
        offset = self._sum / self._weight
        covariance = (upper + np.triu(upper, 1).T) / self._weight - np.outer(offset, offset)
        return ActivationStats(
            self._count, self._shift + offset, self._magnitude / self._weight, covariance
        )


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
    """Collects :class:`PairedStats` batch by batch; rows may have weights.

    Args:
        features: K of both values.
        name: what the rows are of, for errors.
    """

    def __init__(self, features: int, name: str = "a value inside the model") -> None:
        self._name = name
        self._first = MomentAccumulator(features, name)
        self._shifts: tuple[Float64, Float64] | None = None
        self._weight = 0.0
        self._sums = np.zeros((2, features))
        self._cross = np.zeros((features, features))

    def update(self, first: Array, second: Array, weights: Array) -> None:
        """Add the rows ``first`` and ``second``, both [n, K], with weights ``[n]``.

        Raises:
            DataError: a number is NaN or infinite.
        """
        if not len(first):
            return
        self._first.update(first, weights)
        x, y = (np.asarray(rows, dtype=np.float64) for rows in (first, second))
        w = weights.astype(np.float64)
        _check_finite(w @ y, self._name)
        if self._shifts is None:
            self._shifts = x.mean(axis=0), y.mean(axis=0)
        x, y = x - self._shifts[0], y - self._shifts[1]
        self._weight += float(w.sum())
        self._sums += np.stack([w @ x, w @ y])
        self._cross += (x * w[:, None]).T @ y

    def result(self) -> PairedStats:
        """The statistics so far; all zero where every weight was, or no row was seen."""
        if self._shifts is None or not self._weight:
            zero, none = np.zeros_like(self._sums[0]), np.zeros_like(self._cross)
            return PairedStats(ActivationStats(self._first.count, zero, zero, none), zero, none)
        offsets = self._sums / self._weight
        cross = self._cross / self._weight - np.outer(*offsets)
        return PairedStats(self._first.result(), self._shifts[1] + offsets[1], cross)


def _check_finite(sums: Float64, name: str) -> None:
    """Sums are NaN or infinite where any number in them was."""
    if not np.isfinite(sums).all():
        raise DataError(
            f"{name} is NaN or infinite on these samples: leave out those on which the model "
            "overflows, or export it with a wider dtype"
        )
