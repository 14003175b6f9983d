"""FLAR-SVD (Thoma et al., CVPR Workshops 2025): whitening, and ranks by equal feature error.

Weights are factored as in SVD-LLM. A layer's *feature error* is the relative squared change of the
model's last feature (what its head reads; the output, where there is no head) when only that layer
is factored. For one threshold, each layer takes the least rank whose feature error stays below it,
found by binary search; a layer that would need as many parameters as before stays dense.

Published, a threshold that comes from a uniform model gives ranks, which are then scaled to the
budget by one factor. Here bisection finds the threshold whose ranks use the budget best, which
keeps the errors equal. The latency model of the paper is left out: the budget is parameters. So is
its shrinkage of the second moment, as nothing is inverted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from compress_onnx.graph_passes.allocation import Candidate
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.evidence.sensitivity import Trial
from compress_onnx.pipeline.runtime.padding import real_positions
from studies.peers.contestant import Compressor, Contestant, compressor
from studies.peers.laboratory import Laboratory, Ranks, budget, cost
from studies.peers.svd_llm import whitened

FeatureError = Callable[[str, int], float]
"""Of the model with the weight of a key at a rank; expected to fall with the rank."""

_LEAST, _MOST = 1e-8, 1.0
_STEPS = 14


@dataclass(frozen=True)
class _Interval:
    """The positions in a layer's list of sizes between which its size must be."""

    low: int
    high: int


def search(
    candidates: Sequence[Candidate], error: FeatureError, share: float, multiple: int
) -> Ranks:
    """The ranks of the least threshold, to within 0.2 %, that keeps the budget.

    Raises:
        RequestError: not even the smallest ranks fit into the budget.
    """
    sizes = {candidate.key: _sizes(candidate, multiple) for candidate in candidates}
    limit = budget(candidates, share)
    between = {key: _Interval(0, len(ranks) - 1) for key, ranks in sizes.items()}
    best = dict.fromkeys(sizes, 0)
    if cost(candidates, _ranks(sizes, best)) > limit:
        raise RequestError(f"ranks of {multiple} take more than {share:.0%}: ask for more")
    low, high = math.log(_LEAST), math.log(_MOST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = {
            key: _least(ranks, between[key], partial(error, key), math.exp(middle))
            for key, ranks in sizes.items()
        }
        if cost(candidates, _ranks(sizes, found)) > limit:
            low = middle
            between = {key: _Interval(between[key].low, found[key]) for key in sizes}
        else:
            high, best = middle, found
            between = {key: _Interval(found[key], between[key].high) for key in sizes}
    return _ranks(sizes, best)


def _sizes(candidate: Candidate, multiple: int) -> list[int | None]:
    """The ranks that are smaller than the dense weight, and None for that."""
    ranks = range(multiple, candidate.max_rank + 1, multiple)
    return [*(rank for rank in ranks if candidate.pays(rank)), None]


def _ranks(sizes: Mapping[str, Sequence[int | None]], positions: Mapping[str, int]) -> Ranks:
    return {key: sizes[key][position] for key, position in positions.items()}


def _least(
    sizes: Sequence[int | None],
    interval: _Interval,
    error: Callable[[int], float],
    threshold: float,
) -> int:
    """The first position whose error is at most ``threshold``; dense has none."""
    low, high = interval.low, interval.high
    while low < high:
        middle = (low + high) // 2
        rank = sizes[middle]
        if rank is None or error(rank) <= threshold:
            high = middle
        else:
            low = middle + 1
    return low


def feature_error(trials: Sequence[Trial], name: str) -> float:
    """The relative squared change of the value ``name``; padding is left out."""
    change, energy = 0.0, 0.0
    for trial in trials:
        before, after = (v[name].astype(np.float64) for v in (trial.original, trial.replaced))
        mask = trial.batch.mask
        real = None if mask is None else real_positions(before, mask)
        weight = 1.0 if real is None else real[..., None]
        change += float(np.sum(weight * (after - before) ** 2))
        energy += float(np.sum(weight * before**2))
    return change / energy


def last_feature(laboratory: Laboratory) -> str:
    """What the last site that is not selected reads, or else the model's first output."""
    selected = {layer.site.name for layer in laboratory.layers}
    heads = [site for site in laboratory.original.table.sites if site.name not in selected]
    value = heads[-1].input if heads else laboratory.original.model.graph.outputs[0]
    assert value.name is not None
    return value.name


def _learn(laboratory: Laboratory) -> Compressor:
    layers = {layer.key: layer for layer in laboratory.layers}
    found = {key: whitened(layer.weight, layer.stats) for key, layer in layers.items()}
    feature = last_feature(laboratory)
    probe = laboratory.probe([feature])

    @cache
    def error(key: str, rank: int) -> float:
        layer = layers[key]
        residual = found[key].factorize(rank).product() - layer.weight.astype(np.float64)
        return feature_error(list(probe.replace(layer.site, residual)), feature)

    candidates, multiple = laboratory.candidates, laboratory.multiple
    return compressor(laboratory, found, lambda share: search(candidates, error, share, multiple))


FLAR_SVD = Contestant(
    "FLAR-SVD",
    ours=False,
    source="Thoma et al., CVPRW 2025: whitening, ranks of equal measured feature error",
    activations=True,
    learn=_learn,
)
