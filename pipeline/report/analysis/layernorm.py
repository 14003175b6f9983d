"""Does LayerNorm take the ground from activation-aware SVD? A test on the sites of a real model.

The study of SVD and ASVD on ViT and BERT found ASVD worse than hoped on ViT, and blames LayerNorm:
it makes the activations uniform over the units, so that scaling units has nothing to work with. If
so, then at sites that a normalization feeds, compared with all others,

1. the standard deviations of the units differ less,
2. scaling by unit (``asvd-diagonal``) gains less over plain SVD.

Neither says anything about the exact solution: LayerNorm fixes the length of each position's
vector, not how units vary together, and that is what the exact solution uses. So the question that
remains is

3. whether the exact, centred solution gains where diagonal scaling does not.

Every method factors each site at the same rank from calibration data; the error is that of the
site's outputs on *held-out* data, ``‖X(W − B)‖ / ‖XW‖`` with X centred: each method is granted the
bias that suits it best, although only the centred one brings it along. What the errors say is told
by :mod:`pipeline.report.analysis.conclusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from compress_onnx.graph_passes.arrays import Array, Float64
from compress_onnx.graph_passes.factorization import ActivationStats, Factorization, make_method
from compress_onnx.graph_passes.factorization.error import activation_error
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.normalization import origin_of
from compress_onnx.pipeline.evidence.calibrate import taps_of
from compress_onnx.pipeline.results import Result

SVD, DIAGONAL, STRONG_DIAGONAL = "svd", "diagonal", "diagonal, α = 1"
UNCENTRED, EXACT = "exact, uncentred", "exact, centred"
METHODS = (DIAGONAL, STRONG_DIAGONAL, UNCENTRED, EXACT)
"""What is compared with plain SVD."""


class SiteComparison(Result):
    """One site: where its inputs come from, and the held-out error of each method at one rank.

    Attributes:
        site: its name.
        input: what it reads; equal for sites that read one value.
        fed_by: the operator that makes it.
        normalized: whether that is a normalization.
        rank: of all methods.
        variation: standard deviation over mean of the units' standard deviations.
        errors: relative, by method.
    """

    site: str
    input: str
    fed_by: str
    normalized: bool
    rank: int
    variation: float
    errors: dict[str, float]


class Estimate(Result):
    """A mean with its 95 % interval; without one where a single input cannot give it."""

    value: float
    low: float | None = None
    high: float | None = None


def as_text(ratio: Estimate) -> str:
    """``0.81 [0.76, 0.87]``."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


class SiteGroup(Result):
    """Sites that a normalization feeds, or all others.

    Attributes:
        variation: mean over the inputs.
        ratios: geometric mean of the error over that of plain SVD, by method.
        exact_over_diagonal: the same for the exact, centred solution over diagonal scaling.
    """

    normalized: bool
    sites: int
    inputs: int
    variation: Estimate
    ratios: dict[str, Estimate]
    exact_over_diagonal: Estimate


class NormalizationTest(Result):
    """The test.

    Attributes:
        sites: all that were compared.
        left_out: how many of them lose nothing by one of the methods.
        groups: of the others; the normalized one first, none that is empty.
        verdict: what the groups say, in sentences.
    """

    sites: tuple[SiteComparison, ...]
    left_out: int
    groups: tuple[SiteGroup, ...]
    verdict: tuple[str, ...]


def compare(
    sites: Sequence[LinearSite],
    ranks: Mapping[str, int],
    fitted: Mapping[str, ActivationStats],
    held_out: Mapping[str, ActivationStats],
    progress: Callable[[int], None] | None = None,
) -> list[SiteComparison]:
    """Factor all ``sites`` that have a rank and statistics by every method.

    Args:
        sites: of one model.
        ranks: by site name, at which factors are smaller than the weight.
        fitted: statistics of the calibration data by site name.
        held_out: of data that no method has seen.
        progress: called with the number of sites done, after each.
    """
    taps = taps_of(sites)
    uncentred: dict[str, ActivationStats] = {}  # shared, because their roots are kept with them
    compared: list[SiteComparison] = []
    for site in sites:
        if site.name not in ranks or site.name not in fitted or site.weight.stacked:
            continue
        rank, key, known = ranks[site.name], taps[site.name].key, fitted[site.name]
        moments = uncentred.setdefault(key, replace(known, mean=np.zeros_like(known.mean)))
        origin = origin_of(site.input)
        compared.append(
            SiteComparison(
                site=site.name,
                input=key,
                fed_by=origin.kind,
                normalized=origin.normalized,
                rank=rank,
                variation=variation(known),
                errors=_errors(site.weight.array(), rank, known, moments, held_out[site.name]),
            )
        )
        if progress is not None:
            progress(len(compared))
    return compared


def variation(known: ActivationStats) -> float:
    """How much the units' standard deviations differ: theirs over their mean; 0 if none varies."""
    deviations = deviations_of(known)
    mean = float(deviations.mean())
    return float(deviations.std()) / mean if mean > 0 else 0.0


def deviations_of(known: ActivationStats) -> Float64:
    """``[K]`` the standard deviation of each unit."""
    return np.sqrt(np.maximum(np.diag(known.covariance), 0.0))


def _errors(
    weight: Array,
    rank: int,
    fitted: ActivationStats,
    uncentred: ActivationStats,
    held_out: ActivationStats,
) -> dict[str, float]:
    def factored(method: str, known: ActivationStats, **options: float) -> Factorization:
        return make_method(method, options).decompose(weight, known).factorize(rank)

    factorizations = {
        SVD: factored("svd", fitted),
        DIAGONAL: factored("asvd-diagonal", fitted),
        STRONG_DIAGONAL: factored("asvd-diagonal", fitted, alpha=1.0),
        UNCENTRED: factored("asvd", uncentred),
        EXACT: factored("asvd", fitted),
    }
    return {name: activation_error(weight, f, [held_out]) for name, f in factorizations.items()}
