"""Every weight keeps the same share of its price; in parameters, r = share · K·N / (K + N).

Rules:

1. A weight that not even rank 1 makes cheaper stays dense (None), and the others make up for it.
2. Ranks are rounded down to the multiple. As that would leave a good part of a small model's budget
   unused, what is left over raises ranks by one multiple, those first that rounding cut most, while
   the summed price stays within the budget.
3. A rank is at least 1, or the largest of those that take least: only such a one can exceed the
   weight's share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress_onnx.graph_passes.allocation.base import Candidate, round_rank


def uniform(
    candidates: Sequence[Candidate], share: float, multiple: int
) -> Mapping[str, int | None]:
    """Allocate the same share to each candidate, as nearly as ``multiple`` allows."""
    stuck = [c for c in candidates if c.price.at(1) >= c.price.dense]
    others = [c for c in candidates if c.price.at(1) < c.price.dense]
    total = sum(c.price.dense for c in others)
    if stuck and others:
        share -= (1 - share) * sum(c.price.dense for c in stuck) / total
    return {**{c.key: None for c in stuck}, **_same_share(others, share, total, multiple)}


def _same_share(
    candidates: Sequence[Candidate], share: float, total: float, multiple: int
) -> dict[str, int]:
    wanted = {c.key: c.price.rank_within(share * c.price.dense) for c in candidates}
    ranks = {c.key: round_rank(wanted[c.key], multiple, c.max_rank) for c in candidates}
    left = share * total - sum(c.price.at(ranks[c.key]) for c in candidates)
    for candidate in sorted(candidates, key=lambda c: ranks[c.key] - wanted[c.key]):
        rank = ranks[candidate.key]
        raised = rank + multiple
        extra = candidate.price.at(raised) - candidate.price.at(rank)
        # A rank below the multiple is exact already; one that costs more than dense is no use.
        if raised % multiple == 0 and candidate.pays(raised) and extra <= left:
            ranks[candidate.key] = raised
            left -= extra
    return ranks
