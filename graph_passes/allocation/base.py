"""Rank allocation: how a budget of parameters is shared out among weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Candidate:
    """A weight that could be factored: one matrix [in_features, out_features], or several."""

    key: str
    in_features: int
    out_features: int
    matrices: int = 1

    @property
    def cost(self) -> int:
        """Parameters that one unit of rank costs."""
        return self.matrices * (self.in_features + self.out_features)

    @property
    def dense(self) -> int:
        """Parameters of the weight as it is."""
        return self.matrices * self.in_features * self.out_features

    @property
    def max_rank(self) -> int:
        """The rank at which factors are exact."""
        return min(self.in_features, self.out_features)


class Allocator(Protocol):
    """Shares a budget out; deterministic."""

    def __call__(
        self, candidates: Sequence[Candidate], share: float, multiple: int
    ) -> Mapping[str, int]:
        """Return a rank for each candidate's key.

        Args:
            candidates: all weights that may be factored.
            share: of the candidates' summed dense parameters, what may be kept.
            multiple: ranks are multiples of this where they reach it.
        """


def round_rank(rank: float, multiple: int, max_rank: int) -> int:
    """``rank`` rounded down to ``multiple`` where it reaches it; between 1 and ``max_rank``."""
    whole = int(rank)
    if whole >= multiple:
        whole -= whole % multiple
    return max(1, min(whole, max_rank))
