"""Every weight keeps the same share of its parameters: r = share · K·N / (K + N)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph_passes.allocation.base import Candidate, round_rank


def uniform(candidates: Sequence[Candidate], share: float, multiple: int) -> Mapping[str, int]:
    """Allocate the same share to each candidate, rounded down."""
    return {
        candidate.key: round_rank(
            share * candidate.dense / candidate.cost, multiple, candidate.max_rank
        )
        for candidate in candidates
    }
