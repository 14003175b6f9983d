"""What became worse from one report to another, beyond noise.

Each quantity has a direction, and is *worse* where it moved the wrong way by more than its
tolerance, and by more than chance explains:

* scores of samples (cosine, nDCG, recall): the mean difference over the same samples has a 95 %
  percentile bootstrap interval that leaves zero out;
* right and wrong answers (accuracy): McNemar's exact test of the samples that only one of the two
  gets right has p < 0.05 (Dietterich 1998, "Approximate statistical tests for comparing supervised
  classification learning algorithms");
* speed-ups: the 95 % intervals of the two do not overlap (times themselves are of one machine and
  one hour, and are not compared);
* all else (bytes, errors of outputs) is not sampled, or both reports would have to hold every
  sample: the tolerance alone decides.

Where the samples are not the same, a score is compared by its tolerance alone, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.measure.gates import measured_quantities
from compress_onnx.pipeline.measure.mean_interval import mean_interval
from compress_onnx.pipeline.results import (
    Change,
    RunReport,
    TranslationReport,
    ValidationReport,
)
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

Direction = Literal["higher", "lower"]

_HIGHER = {
    "cosine",
    "cosine_p5",
    "neighbour_overlap",
    "spearman",
    "accuracy",
    "agreement",
    "ndcg",
    "recall",
    "bleu",
    "chrf",
    "speedup",
    "batch_invariance",
    "min_output_cosine",
}
_LOWER = {
    "relative_l2",
    "size_ratio",
    "parameter_ratio",
    "candidate_bytes",
    "candidate_parameters",
}
# Relative to the base, what a quantity may move without being worse.
TOLERANCES: Mapping[str, float] = {
    "speedup": 0.05,
    "relative_l2": 0.05,
    "size_ratio": 0.01,
    "candidate_bytes": 0.01,
    "parameter_ratio": 0.01,
    "candidate_parameters": 0.01,
    "batch_invariance": 1e-4,
    "agreement": 0.01,
    "neighbour_overlap": 0.01,
    "spearman": 0.005,
    "cosine_p5": 0.01,
    "min_output_cosine": 0.005,
}
_SCORE_TOLERANCE = 0.001
"""Of all other scores."""

_PAIRED = {"cosine": "cosine", "accuracy": "right", "ndcg": "ndcg", "recall": "recall"}
"""The samples' scores that a quantity is the mean of."""

_SIGNIFICANT = 0.05


def direction_of(quantity: str) -> Direction | None:
    """Which way is better; None for what is no merit, such as the reference's own accuracy."""
    name = quantity.partition(".")[0]
    if name in _HIGHER:
        return "higher"
    return "lower" if name in _LOWER else None


def changes(
    base: RunReport | TranslationReport,
    candidate: RunReport | TranslationReport,
    tolerances: Mapping[str, float] | None = None,
) -> list[Change]:
    """Every quantity of the base, and what became of it; one that is gone is worse.

    Args:
        base: the report to hold against.
        candidate: another one of the same recipe.
        tolerances: relative to the base, by quantity, with or without its provider; other than
            :data:`TOLERANCES`.

    Raises:
        RequestError: the reports are of different kinds, or have nothing in common, or a tolerance
            names nothing that is compared.
    """
    if type(base) is not type(candidate):
        raise RequestError(
            "one report is of a translation and the other is not: compare runs of one recipe"
        )
    before, after = quantities_of(base), quantities_of(candidate)
    names = [
        name for name in before if direction_of(name) is not None and not _repeats(name, before)
    ]
    if not after.keys() & set(names):
        raise RequestError("the reports have no quantity in common: compare runs of one recipe")
    given = dict(tolerances or {})
    for name in given:
        if not any(name in {known, known.partition(".")[0]} for known in names):
            raise RequestError(
                f"--tolerance {name}: no such quantity is compared, only {', '.join(names)}"
            )
    return [
        _change(name, base, candidate, (before[name], after.get(name)), given) for name in names
    ]


def _repeats(name: str, quantities: Mapping[str, float]) -> bool:
    """Whether ``name`` is ``cosine.cpu`` beside an equal ``cosine``, that of the first provider."""
    short, dot, place = name.rpartition(".")
    same = quantities.get(short, math.nan)
    return bool(dot) and place in EXECUTION_PROVIDERS and same == quantities[name]


def quantities_of(report: RunReport | TranslationReport) -> dict[str, float]:
    """What a report measured, by the names that gates have."""
    if isinstance(report, RunReport):
        return measured_quantities(report.validation, report.benchmarks, report.size)
    found = {
        "bleu": report.candidate.mean.bleu,
        "chrf": report.candidate.mean.chrf,
        "candidate_bytes": float(report.size.candidate_bytes),
        "size_ratio": report.size.candidate_bytes / report.size.reference_bytes,
    }
    if report.timing is not None:
        found[f"speedup.{report.timing.provider}"] = report.timing.speedup
    return found


def _change(
    name: str,
    base: RunReport | TranslationReport,
    candidate: RunReport | TranslationReport,
    values: tuple[float, float | None],
    tolerances: Mapping[str, float],
) -> Change:
    direction = direction_of(name)
    assert direction is not None
    before, after = values[0], math.nan if values[1] is None else values[1]
    short, _, where = name.partition(".")
    tolerance = tolerances.get(name, tolerances.get(short, TOLERANCES.get(short, _SCORE_TOLERANCE)))
    gain = (after - before) if direction == "higher" else (before - after)
    if math.isnan(after) or math.isinf(gain):
        gain = -math.inf if not math.isfinite(after) and math.isfinite(before) else 0.0
    beyond = abs(gain) > tolerance * abs(before)
    test, chance = "tolerance", False
    if values[1] is None:
        test = "not measured any more"
    elif short in _PAIRED and (found := _samples(base, candidate, short, where)) is not None:
        test, chance = _paired_test(short, *found)
    elif short in _PAIRED:
        test = "tolerance (the samples are not the same)"
    elif short == "speedup" and (apart := _intervals_apart(base, candidate, where)) is not None:
        test, chance = "intervals", not apart
    verdict: Literal["better", "worse", "same"] = "same"
    if beyond and not chance:
        verdict = "better" if gain > 0 else "worse"
    return Change(
        quantity=name,
        base=before,
        candidate=after,
        direction=direction,
        tolerance=tolerance,
        test=test,
        verdict=verdict,
    )


def _samples(
    base: RunReport | TranslationReport,
    candidate: RunReport | TranslationReport,
    short: str,
    where: str,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The scores of the same samples in both reports, ``[n]`` each; None where there are none."""
    ours, theirs = _set(base, where), _set(candidate, where)
    if ours is None or theirs is None or ours.digest is None or ours.digest != theirs.digest:
        return None
    pair = [report.per_sample.get(_PAIRED[short]) for report in (ours, theirs)]
    if pair[0] is None or pair[1] is None or len(pair[0]) != len(pair[1]):
        return None
    return np.array(pair[0]), np.array(pair[1])


def _set(report: RunReport | TranslationReport, where: str) -> ValidationReport | None:
    """The comparison on the provider, or in the domain, that a quantity names."""
    if not isinstance(report, RunReport) or report.validation is None:
        return None
    first = report.validation
    places = {place.provider: place for place in (first, *first.elsewhere)} | dict(first.domains)
    return places.get(where, first if not where else None)


def _paired_test(short: str, ours: np.ndarray, theirs: np.ndarray) -> tuple[str, bool]:
    """The test by name with its figure, and whether chance explains the difference."""
    if short == "accuracy":
        only_ours = int(np.sum(ours > theirs))
        only_theirs = int(np.sum(theirs > ours))
        differing = only_ours + only_theirs
        p = float(binomtest(only_ours, differing).pvalue) if differing else 1.0
        return f"McNemar, p = {p:.2g}", p >= _SIGNIFICANT
    differences = theirs - ours
    if not np.ptp(differences):
        return "bootstrap", not differences.any()
    low, high = mean_interval(differences)
    return f"bootstrap, difference {low:+.2g} to {high:+.2g}", bool(low <= 0 <= high)


def _intervals_apart(
    base: RunReport | TranslationReport, candidate: RunReport | TranslationReport, where: str
) -> bool | None:
    """Whether the intervals of two speed-ups do not overlap; None where one has none."""
    pair = [next(_speedup_intervals(report, where), None) for report in (base, candidate)]
    if pair[0] is None or pair[1] is None:
        return None
    (low, high), (other_low, other_high) = pair[0], pair[1]
    return high < other_low or other_high < low


def _speedup_intervals(
    report: RunReport | TranslationReport, where: str
) -> Iterator[tuple[float, float]]:
    if isinstance(report, TranslationReport):
        if report.timing is not None:
            yield report.timing.speedup_low, report.timing.speedup_high
        return
    for row in report.benchmarks:
        if where in {row.name, row.provider}:
            yield row.speedup_low, row.speedup_high
