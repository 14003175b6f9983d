"""What the errors of :mod:`pipeline.report.analysis.layernorm` say, in figures and in sentences.

Compared are ratios of a method's error to that of plain SVD at the same site.

1. Sites that read one input are no independent witnesses. Their log ratios are averaged first, and
   intervals (95 %, Student's t) are over inputs.
2. Sites where a method loses nothing but rounding are left out: their inputs have no more
   directions than the rank. Their ratios would be arbitrary and drown all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats as statistics

from compress_onnx.pipeline.report.analysis.layernorm import (
    DIAGONAL,
    EXACT,
    METHODS,
    SVD,
    Estimate,
    NormalizationTest,
    SiteComparison,
    SiteGroup,
    as_text,
)

Float64 = NDArray[np.float64]

_CONFIDENCE = 0.95
_ROUNDING = 1e-5
"""Relative errors below this are those of float32 factors."""


def conclude(sites: Sequence[SiteComparison]) -> NormalizationTest:
    """The whole test: ``sites`` in two groups, and what the figures of these say."""
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
    width = float(statistics.sem(values) * statistics.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
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
