"""ASVD4LLM (Yuan et al., 2023, arXiv:2312.05821): diagonal scaling and sensitivity search.

Weights are factored with their input channels scaled by E|x|^0.5
(:mod:`graph_passes.factorization.asvd_diagonal`). Ranks come from a search:

1. For each layer and each share of 0.1, 0.2, … 0.9 of its parameters, the loss of the model with
   only that layer factored is measured on calibration samples.
2. All (layer, share) pairs form one list, sorted by loss, the most harmful first.
3. Truncating at a position of that list means: each layer takes the smallest of its shares from
   there on; a layer without any stays dense. Binary search finds the first position, that is the
   most parameters, within the budget.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress_onnx.graph_passes.allocation import Candidate, round_rank
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import Decomposition
from compress_onnx.graph_passes.factorization.asvd_diagonal import DiagonalASVD
from studies.peers.contestant import Compressor, Contestant, compressor
from studies.peers.laboratory import Laboratory, Layer, Ranks, budget, cost
from studies.peers.loss import loss

SHARES = tuple(tenths / 10 for tenths in range(1, 10))


@dataclass(frozen=True)
class Truncation:
    """One layer at one rank, and the loss of the model with nothing else changed."""

    key: str
    rank: int
    loss: float


def search(
    candidates: Sequence[Candidate], truncations: Sequence[Truncation], share: float
) -> Ranks:
    """Rules 2 and 3.

    Raises:
        RequestError: not even the smallest ranks that were measured fit into the budget.
    """
    most_harmful_first = sorted(truncations, key=lambda truncation: -truncation.loss)
    ends = range(len(most_harmful_first), -1, -1)  # few truncations first: parameters fall

    def ranks_from(position: int) -> Ranks:
        ranks: dict[str, int | None] = {candidate.key: None for candidate in candidates}
        for truncation in most_harmful_first[position:]:
            known = ranks[truncation.key]
            ranks[truncation.key] = (
                truncation.rank if known is None else min(known, truncation.rank)
            )
        return ranks

    saved_at_least = -budget(candidates, share)
    found = bisect_left(ends, saved_at_least, key=lambda end: -cost(candidates, ranks_from(end)))
    if found == len(ends):
        raise RequestError(f"ASVD4LLM was measured at {SHARES[0]:.0%} and above: ask for more")
    return ranks_from(ends[found])


def _measure(laboratory: Laboratory, decompositions: dict[str, Decomposition]) -> list[Truncation]:
    """Rule 1."""
    probe, loss_of = laboratory.probe(), loss(laboratory)

    def measured(layer: Layer, rank: int) -> float:
        product = decompositions[layer.key].factorize(rank).product()
        residual = product - layer.weight.astype(np.float64)
        return sum(loss_of(trial) for trial in probe.replace(layer.site, residual))

    return [
        Truncation(layer.key, rank, measured(layer, rank))
        for layer in laboratory.layers
        for rank in _ranks(layer.candidate, laboratory.multiple)
    ]


def _ranks(candidate: Candidate, multiple: int) -> list[int]:
    whole = [share * candidate.dense / candidate.cost for share in SHARES]
    return sorted({round_rank(rank, multiple, candidate.max_rank) for rank in whole})


def _learn(laboratory: Laboratory) -> Compressor:
    method = DiagonalASVD(alpha=0.5)
    found: dict[str, Decomposition] = {
        layer.key: method.decompose(layer.weight, layer.stats) for layer in laboratory.layers
    }
    truncations = _measure(laboratory, found)
    candidates = laboratory.candidates
    return compressor(laboratory, found, lambda share: search(candidates, truncations, share))


ASVD4LLM = Contestant(
    "ASVD4LLM",
    ours=False,
    source="Yuan et al., 2023: inputs scaled by their magnitude, ranks by measured sensitivity",
    activations=True,
    learn=_learn,
)
