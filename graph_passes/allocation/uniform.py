"""Every weight keeps the same share of its parameters: r = share · K·N / (K + N).

Rounding ranks down to a multiple would leave a good part of a small model's budget unused, so what
is left over raises ranks by one multiple, those first that rounding cut most, while the summed
parameters stay within the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph_passes.allocation.base import Candidate, round_rank


def uniform(candidates: Sequence[Candidate], share: float, multiple: int) -> Mapping[str, int]:
    """Allocate the same share to each candidate, as nearly as ``multiple`` allows."""
    wanted = {c.key: share * c.dense / c.cost for c in candidates}
    ranks = {c.key: round_rank(wanted[c.key], multiple, c.max_rank) for c in candidates}
    left = share * sum(c.dense for c in candidates) - sum(ranks[c.key] * c.cost for c in candidates)
    for candidate in sorted(candidates, key=lambda c: ranks[c.key] - wanted[c.key]):
        raised = ranks[candidate.key] + multiple
        # A rank below the multiple is exact already; one that costs more than dense is no use.
        pays = raised % multiple == 0 and raised * candidate.cost < candidate.dense
        if pays and multiple * candidate.cost <= left:
            ranks[candidate.key] = raised
            left -= multiple * candidate.cost
    return ranks
