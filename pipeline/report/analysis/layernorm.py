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
bias that suits it best, although only the centred one brings it along. What is compared are ratios
to plain SVD at the same site. Sites that read one input are no independent witnesses: their log
ratios are averaged first, and intervals (95 %, Student's t) are over inputs. Sites where a method
loses nothing but rounding (their inputs have no more directions than the rank) are left out: their
ratios would be arbitrary, and drown all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats as statistics

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

_CONFIDENCE = 0.95
_ROUNDING = 1e-5
"""Relative errors below this are those of float32 factors."""


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
) -> NormalizationTest:
    """Run the test on all ``sites`` that have a rank and statistics.

    Args:
        sites: of one model.
        ranks: by site name, at which factors are smaller than the weight.
        fitted: statistics of the calibration data by site name.
        held_out: of data that no method has seen.
        progress: called with the number of sites done, after each.
    """
    taps = taps_of(sites)
    tested: list[SiteComparison] = []
    uncentred: dict[str, ActivationStats] = {}  # shared, because their roots are kept with them
    for site in sites:
        if site.name in ranks and site.name in fitted and not site.weight.stacked:
            key, known = taps[site.name].key, fitted[site.name]
            uncentred.setdefault(key, replace(known, mean=np.zeros_like(known.mean)))
            origin = origin_of(site.input)
            tested.append(
                SiteComparison(
                    site=site.name,
                    input=key,
                    fed_by=origin.kind,
                    normalized=origin.normalized,
                    rank=ranks[site.name],
                    variation=variation(known),
                    errors=_errors(
                        site.weight.array(),
                        ranks[site.name],
                        known,
                        uncentred[key],
                        held_out[site.name],
                    ),
                )
            )
            if progress is not None:
                progress(len(tested))
    return conclude(tested)


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


def conclude(sites: Sequence[SiteComparison]) -> NormalizationTest:
    """Group the sites, and say what the numbers say."""
    usable = [site for site in sites if min(site.errors.values()) > _ROUNDING]
    groups = [
        _group(members, normalized)
        for normalized in (True, False)
        if (members := [site for site in usable if site.normalized == normalized])
    ]
    return NormalizationTest(
        sites=tuple(sites),
        left_out=len(sites) - len(usable),
        groups=tuple(groups),
        verdict=tuple(_verdict(usable, groups)),
    )


def _group(sites: Sequence[SiteComparison], normalized: bool) -> SiteGroup:
    variations = _by_input(sites, lambda site: site.variation)
    return SiteGroup(
        normalized=normalized,
        sites=len(sites),
        inputs=len(variations),
        variation=_estimate(variations),
        ratios={method: _ratio(_logs(sites, method, SVD)) for method in METHODS},
        exact_over_diagonal=_ratio(_logs(sites, EXACT, DIAGONAL)),
    )


def _by_input(sites: Sequence[SiteComparison], value: Callable[[SiteComparison], float]) -> Float64:
    """``[inputs]`` the mean of ``value`` over the sites that read each input."""
    found: dict[str, list[float]] = {}
    for site in sites:
        found.setdefault(site.input, []).append(value(site))
    return np.array([np.mean(values) for values in found.values()])


def _logs(sites: Sequence[SiteComparison], method: str, other: str) -> Float64:
    """``[inputs]`` log ratios of the errors of two methods."""
    return _by_input(sites, lambda site: float(np.log(site.errors[method] / site.errors[other])))


def _estimate(values: Float64) -> Estimate:
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(value=mean)
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    width = float(statistics.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    return Estimate(value=mean, low=mean - width, high=mean + width)


def _ratio(logs: Float64) -> Estimate:
    """The geometric mean."""
    found = _estimate(logs)
    return Estimate(
        value=float(np.exp(found.value)),
        low=None if found.low is None else float(np.exp(found.low)),
        high=None if found.high is None else float(np.exp(found.high)),
    )


def _verdict(sites: Sequence[SiteComparison], groups: Sequence[SiteGroup]) -> list[str]:
    after = next((group for group in groups if group.normalized), None)
    elsewhere = next((group for group in groups if not group.normalized), None)
    if after is None:
        return ["No site is fed by a normalization that was recognized: nothing can be tested."]
    if elsewhere is None:
        return [_closing(after)]
    return [
        _uniformity(sites, after, elsewhere),
        _scaling(sites, after, elsewhere),
        _closing(after),
    ]


def _uniformity(sites: Sequence[SiteComparison], after: SiteGroup, elsewhere: SiteGroup) -> str:
    difference = _difference(sites, lambda site: site.variation)
    return (
        f"The units' standard deviations vary by {after.variation.value:.2f} of their mean after a "
        f"normalization and by {elsewhere.variation.value:.2f} elsewhere: "
        + _judged(
            difference,
            below="they are more uniform there, as the hypothesis says.",
            above="they are less uniform there, against the hypothesis.",
        )
    )


def _scaling(sites: Sequence[SiteComparison], after: SiteGroup, elsewhere: SiteGroup) -> str:
    difference = _difference(
        sites, lambda site: float(np.log(site.errors[DIAGONAL] / site.errors[SVD]))
    )
    return (
        f"Diagonal scaling leaves {as_text(after.ratios[DIAGONAL])} of plain SVD's error after a "
        f"normalization and {as_text(elsewhere.ratios[DIAGONAL])} elsewhere: "
        + _judged(
            difference,
            below="it helps more there, against the hypothesis.",
            above="it helps less there, as the hypothesis says.",
        )
    )


def _closing(after: SiteGroup) -> str:
    exact, diagonal = after.ratios[EXACT], after.ratios[DIAGONAL]
    reached = np.log(diagonal.value) / np.log(exact.value) if exact.value < 1 else np.nan
    share = f", of whose gain scaling has {reached:.0%}" if np.isfinite(reached) else ""
    return (
        f"The exact, centred solution leaves {as_text(exact)} of plain SVD's error after a "
        f"normalization{share}, and {as_text(after.exact_over_diagonal)} of diagonal scaling's: "
        + _judged(
            _log_interval(after.exact_over_diagonal),
            below="it has what scaling lacks there, how units vary together.",
            above="it does worse than scaling there.",
        )
    )


def as_text(ratio: Estimate) -> str:
    """``0.81 [0.76, 0.87]``."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _log_interval(ratio: Estimate) -> tuple[float, float]:
    if ratio.low is None or ratio.high is None:
        return -np.inf, np.inf
    return float(np.log(ratio.low)), float(np.log(ratio.high))


def _difference(
    sites: Sequence[SiteComparison], value: Callable[[SiteComparison], float]
) -> tuple[float, float]:
    """The 95 % interval (Welch) of the mean after a normalization less the mean elsewhere."""
    after, elsewhere = (
        _by_input([site for site in sites if site.normalized == normalized], value)
        for normalized in (True, False)
    )
    if min(len(after), len(elsewhere)) < 2:
        return -np.inf, np.inf
    found = statistics.ttest_ind(after, elsewhere, equal_var=False).confidence_interval(_CONFIDENCE)
    return float(found.low), float(found.high)


def _judged(interval: tuple[float, float], below: str, above: str) -> str:
    """What an interval of a difference says; it says nothing where it holds zero."""
    low, high = interval
    if high < 0:
        return below
    return above if low > 0 else "no difference is shown (zero is in the 95 % interval)."
