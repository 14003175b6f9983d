"""Statistics of a site's inputs, streamed: count, mean, mean magnitude and second moment.

With rows x of X [n, K]::

    mean        μ = E[x]                      [K]
    magnitude   E|x|                          [K]
    covariance  C = E[(x − μ)(x − μ)ᵀ]        [K, K]

Everything is float64. The second moment is accumulated as one triangle by BLAS ``syrk``, which
does half the work of a product and needs no temporary of its size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.linalg import blas

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ActivationStats:
    """What calibration knows about the inputs of one site (or of several that share a weight).

    Attributes:
        count: rows seen.
        mean: ``[K]``.
        magnitude: ``[K]`` mean absolute value.
        second_moment: ``[K, K]`` symmetric, ``E[x xᵀ]``, not centred.
    """

    count: int
    mean: Float64
    magnitude: Float64
    second_moment: Float64

    @cached_property
    def covariance(self) -> Float64:
        """``[K, K]`` the centred second moment."""
        return self.second_moment - np.outer(self.mean, self.mean)

    @cached_property
    def root(self) -> Float64:
        """``[K, K]`` S with ``SᵀS`` = covariance; shared by all sites that read the same input."""
        values, vectors = linalg.eigh(self.covariance, driver="evd")
        return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T

    @classmethod
    def merge(cls, parts: Iterable[ActivationStats]) -> ActivationStats:
        """The statistics of all rows of ``parts`` together."""
        parts = tuple(parts)
        if len(parts) == 1:
            return parts[0]
        total = sum(part.count for part in parts)
        share = [part.count / total for part in parts]
        return cls(
            total,
            np.sum([w * part.mean for w, part in zip(share, parts, strict=True)], axis=0),
            np.sum([w * part.magnitude for w, part in zip(share, parts, strict=True)], axis=0),
            np.sum([w * part.second_moment for w, part in zip(share, parts, strict=True)], axis=0),
        )


class MomentAccumulator:
    """Collects :class:`ActivationStats` batch by batch."""

    def __init__(self, features: int) -> None:
        self._count = 0
        self._sum = np.zeros(features)
        self._magnitude = np.zeros(features)
        self._moment = np.zeros((features, features), order="F")  # upper triangle

    @property
    def count(self) -> int:
        """Rows seen so far."""
        return self._count

    def update(self, rows: NDArray[np.generic]) -> None:
        """Add ``rows`` of shape [n, K]."""
        x = np.ascontiguousarray(rows, dtype=np.float64)
        self._count += len(x)
        self._sum += x.sum(axis=0)
        self._magnitude += np.abs(x).sum(axis=0)
        if len(x):
            self._moment = blas.dsyrk(1.0, x.T, beta=1.0, c=self._moment, overwrite_c=True)

    def result(self) -> ActivationStats:
        """The statistics so far.

        Raises:
            ValueError: no rows were seen.
        """
        if not self._count:
            raise ValueError("no rows were seen")
        upper = np.triu(self._moment)
        moment = (upper + np.triu(upper, 1).T) / self._count
        return ActivationStats(
            self._count, self._sum / self._count, self._magnitude / self._count, moment
        )
