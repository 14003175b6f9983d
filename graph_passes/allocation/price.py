"""Prices: what a weight takes of the budget, as it is and as factors of each rank.

A budget is a share of something that weights take: parameters, bytes, FLOPs, time. Allocators see
nothing but prices, in one unit for all candidates, and rely on one thing: a price never falls as
the rank rises. What is counted is a straight line; what is measured is a table that noise and
kernels that like some sizes better make crooked, so :meth:`TabulatedPrice.fit` straightens it by
isotonic regression, the closest never-falling sequence in least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import isotonic_regression


class Price(Protocol):
    """What one weight takes of the budget."""

    @property
    def dense(self) -> float:
        """As it is."""

    def at(self, rank: int) -> float:
        """As factors of ``rank``."""

    def rank_within(self, limit: float) -> float:
        """The largest rank, as a fraction, that takes at most ``limit``.

        Where none does, a rank below 1, or the largest of those that take least.
        """


@dataclass(frozen=True)
class LinearPrice:
    """``fixed + per_rank · r``, of what can be counted."""

    dense: float
    per_rank: float
    fixed: float = 0

    def at(self, rank: int) -> float:
        """As :class:`Price`."""
        return self.fixed + self.per_rank * rank

    def rank_within(self, limit: float) -> float:
        """As :class:`Price`."""
        return (limit - self.fixed) / self.per_rank


@dataclass(frozen=True)
class TabulatedPrice:
    """Known at some ``ranks``, straight lines in between, constant below and above.

    Attributes:
        dense: of the weight as it is.
        ranks: rising.
        prices: one for each of ``ranks``, never falling.
    """

    dense: float
    ranks: tuple[int, ...]
    prices: tuple[float, ...]

    @classmethod
    def fit(cls, dense: float, ranks: Sequence[int], measured: Sequence[float]) -> TabulatedPrice:
        """The table that is closest to what was ``measured`` at ``ranks``."""
        fitted = isotonic_regression(np.asarray(measured, dtype=np.float64)).x
        return cls(dense, tuple(ranks), tuple(float(price) for price in fitted))

    def at(self, rank: int) -> float:
        """As :class:`Price`."""
        return float(np.interp(rank, self.ranks, self.prices))

    def rank_within(self, limit: float) -> float:
        """As :class:`Price`."""
        affordable = max(limit, self.prices[0])
        above = int(np.searchsorted(self.prices, affordable, side="right"))
        if above == len(self.ranks):
            return self.ranks[-1]
        below = above - 1
        part = (affordable - self.prices[below]) / (self.prices[above] - self.prices[below])
        return self.ranks[below] + part * (self.ranks[above] - self.ranks[below])
