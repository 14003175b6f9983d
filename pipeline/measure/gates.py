"""Gates: limits on measured quantities, and the names that quantities go by.

A gate on a quantity that is never going to be measured is refused before anything runs
(:func:`check_quantities`, with the names in :mod:`pipeline.measure.quantities`). One on something
that could have been measured and was not fails with the reason, and so does one on NaN.

``batch_invariance`` takes a run for each of 64 samples, so that a recipe measures it only where a
gate names it, and ``validate`` only there or with ``--batch-invariance``.

=============================================  ==================================================
``cosine``, ``accuracy_drop``, …               a metric, by its own name
``output.NAME.max_abs`` (``relative_l2``,      one output, candidate against reference
``cosine``, ``snr_db``)
``max_abs``, ``relative_l2``,                  the worst over all outputs
``min_output_cosine``
``batch_invariance``                           the least cosine between a sample's outputs alone
                                               and in a padded batch, of the candidate; of the
                                               reference ``batch_invariance_reference``
all of these with a provider:                  measured on that provider; without one, on the
``cosine.cuda``, ``relative_l2.cpu``           first, which in a recipe is the CPU
metrics and outputs with a domain:             measured on that further set of samples, on the
``cosine.packages``, ``relative_l2.packages``  first provider; without one, on the set that decides
``cosine.worst``, ``relative_l2.worst``        the worst of that set and of all domains
``speedup.cpu``, ``speedup_low.cpu``           reference p50 over candidate p50, and the lower end
                                               of its interval
``latency_ratio.cpu``                          candidate p50 over reference p50
``p50_ms.cpu`` (``p90_ms``, ``p99_ms``)        the candidate's latency
``samples_per_s.cpu``                          the candidate's throughput at its p50
any of these with a case of a grid:            at one batch and length, with one number of threads;
``speedup.cpu.8x128``, ``….8x128.t2``          without a case, the worst over the grid
``load_ms.cpu``, ``load_ratio.cpu``,           the candidate's time to open a session, and that
``load_ratio_high.cpu``                        over the reference's, with the upper end of its
                                               interval (``bench`` only)
``resident_bytes.cpu``, ``resident_ratio.cpu`` the same of the memory that it takes
``resident_ratio_high.cpu``
``size_ratio``, ``parameter_ratio``            candidate over reference
``candidate_bytes``, ``candidate_parameters``  the candidate's size
``bleu``, ``chrf``; ``bleu.de``                translations: the candidate's mean over languages;
                                               of one language
``bleu_reference``, ``bleu_drop`` (``chrf_…``) the reference's, and reference less candidate; also
                                               of one language (``bleu_drop.de``)
=============================================  ==================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.validation_text import suggestion
from compress_onnx.pipeline.recipe import WORST, Gate
from compress_onnx.pipeline.results import (
    Benchmark,
    GateResult,
    GenerationTiming,
    Loading,
    SizeReport,
    TranslationScore,
    TranslationScores,
    ValidationReport,
)

_MORE_IS_BETTER = {"speedup", "speedup_low", "samples_per_s"}
_GATE_TEXT = re.compile(r"\s*(?P<quantity>[^<>=\s]+)\s*(?P<limit>>=|<=)\s*(?P<threshold>\S+)\s*")


def parse_gate(text: str) -> Gate:
    """A gate from text such as ``cosine>=0.8`` or ``p50_ms.cpu<=20``.

    Raises:
        RequestError: the text is something else.
    """
    match = _GATE_TEXT.fullmatch(text)
    threshold = _number(match["threshold"]) if match else None
    if match is None or threshold is None:
        raise RequestError(
            f"cannot read the gate {text!r}: write a quantity, >= or <=, and a number, "
            "for example cosine>=0.8 or accuracy_drop<=0.01"
        )
    if match["limit"] == ">=":
        return Gate(quantity=match["quantity"], min=threshold)
    return Gate(quantity=match["quantity"], max=threshold)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check_quantities(gates: Sequence[Gate], available: Collection[str]) -> None:
    """Make sure that every gate is about something that is going to be measured.

    Args:
        gates: limits on quantities.
        available: the names that there will be (:mod:`pipeline.measure.quantities`); a star stands
            for any text.

    Raises:
        RequestError: a gate names something else; the message says what there is.
    """
    for gate in gates:
        if any(_is_one(gate.quantity, name) for name in available):
            continue
        meant = suggestion(gate.quantity, available)
        raise RequestError(
            f"a gate on {gate.quantity!r}, which is not measured here{meant or ':'} "
            f"There are {', '.join(available)}"
        )


def _is_one(quantity: str, name: str) -> bool:
    before, star, after = name.partition("*")
    if not star:
        return quantity == name
    return (
        quantity.startswith(before)
        and quantity.endswith(after)
        and len(quantity) > len(before) + len(after)
    )


def check_gates(
    gates: Sequence[Gate],
    quantities: Mapping[str, float],
    unmeasured: Mapping[str, str] | None = None,
) -> tuple[GateResult, ...]:
    """Hold each gate against the quantity that it names.

    Args:
        gates: limits on quantities.
        quantities: what was measured.
        unmeasured: for quantities and providers, why they were not.
    """
    return tuple(
        _check(gate, quantities.get(gate.quantity), _why_not(gate.quantity, unmeasured or {}))
        for gate in gates
    )


def _why_not(quantity: str, unmeasured: Mapping[str, str]) -> str | None:
    """The reason of the quantity ``NAME`` or ``NAME.PROVIDER``, or of the provider."""
    parts = quantity.split(".")
    return next((unmeasured[name] for name in (quantity, *parts) if name in unmeasured), None)


def asks_for(gates: Iterable[Gate], quantity: str) -> bool:
    """Whether a gate is about ``quantity``, on any provider."""
    return any(gate.quantity.partition(".")[0] == quantity for gate in gates)


def _check(gate: Gate, value: float | None, why_not: str | None) -> GateResult:
    low = -math.inf if gate.min is None else gate.min
    high = math.inf if gate.max is None else gate.max
    return GateResult(
        quantity=gate.quantity,
        limit="max" if gate.min is None else "min",
        threshold=high if gate.min is None else low,
        value=value,
        passed=value is not None and low <= value <= high,
        reason=why_not if value is None else None,
    )


def measured_quantities(
    validation: ValidationReport | None,
    benchmarks: Sequence[Benchmark] = (),
    size: SizeReport | None = None,
    loadings: Sequence[Loading] = (),
) -> dict[str, float]:
    """Everything that a gate can name, from what was measured."""
    quantities: dict[str, float] = {}
    if validation is not None:
        quantities |= accuracy_quantities(validation)
        named = {report.provider: report for report in (validation, *validation.elsewhere)}
        for place, report in {**named, **validation.domains}.items():
            there = accuracy_quantities(report).items()
            quantities |= {f"{name}.{place}": value for name, value in there}
        quantities |= {f"{name}.{WORST}": value for name, value in validation.worst.items()}
    for provider in dict.fromkeys(benchmark.provider for benchmark in benchmarks):
        rows = [benchmark for benchmark in benchmarks if benchmark.provider == provider]
        quantities |= _grid_quantities(rows)
    for loading in loadings:
        quantities |= _loading_quantities(loading)
    if size is not None:
        quantities |= _size_quantities(size)
    return quantities


def translation_quantities(
    reference: TranslationScores,
    candidate: TranslationScores,
    size: SizeReport,
    timing: GenerationTiming | None = None,
) -> dict[str, float]:
    """Everything that a gate of a translation recipe can name."""
    quantities = _size_quantities(size) | _score_quantities(reference.mean, candidate.mean)
    if (kept := kept_of(quantities)) is not None:
        quantities["kept"] = kept
    for language, before in reference.languages.items():
        after = candidate.languages[language]
        quantities |= _score_quantities(before, after, suffix=f".{language}")
    if timing is not None:
        quantities[f"speedup.{timing.provider}"] = timing.speedup
        quantities[f"speedup_low.{timing.provider}"] = timing.speedup_low
    return quantities


def _score_quantities(
    reference: TranslationScore, candidate: TranslationScore, suffix: str = ""
) -> dict[str, float]:
    pairs = {
        "bleu": (reference.bleu, candidate.bleu),
        "chrf": (reference.chrf, candidate.chrf),
    }
    quantities: dict[str, float] = {}
    for name, (before, after) in pairs.items():
        quantities[f"{name}{suffix}"] = after
        quantities[f"{name}_reference{suffix}"] = before
        quantities[f"{name}_drop{suffix}"] = before - after
    return quantities


def accuracy_quantities(validation: ValidationReport) -> dict[str, float]:
    """What a comparison on one provider and one set of samples measured."""
    quantities = validation.metrics | _output_quantities(validation)
    if (kept := kept_of(validation.metrics)) is not None:
        quantities["kept"] = kept
    for name in ("batch_invariance", "batch_invariance_reference"):
        if (value := getattr(validation, name)) is not None:
            quantities[name] = value
    return quantities


def kept_of(figures: Mapping[str, float]) -> float | None:
    """The share of the reference's score that the candidate keeps; None without a score.

    MLPerf Inference sets its accuracy classes by it: 99 % and 99.9 % of the reference's. Where the
    reference itself is the measure, as with embeddings, it is the cosine to it.
    """
    for score in ("accuracy", "ndcg", "bleu"):
        if score in figures and figures.get(f"{score}_reference"):
            return figures[score] / figures[f"{score}_reference"]
    return figures.get("cosine")


def _output_quantities(validation: ValidationReport) -> dict[str, float]:
    outputs = validation.outputs
    quantities = {
        "max_abs": max(o.max_abs for o in outputs),
        "relative_l2": max(o.relative_l2 for o in outputs),
        "min_output_cosine": min(o.cosine for o in outputs),
    }
    for o in outputs:
        quantities |= {
            f"output.{o.output}.max_abs": o.max_abs,
            f"output.{o.output}.relative_l2": o.relative_l2,
            f"output.{o.output}.cosine": o.cosine,
            f"output.{o.output}.snr_db": math.inf if o.snr_db is None else o.snr_db,
        }
    return quantities


def _grid_quantities(rows: Sequence[Benchmark]) -> dict[str, float]:
    """Of one provider: of each case by its name, and the worst of all."""
    measured = [_latency_quantities(row) for row in rows]
    quantities = {
        f"{figure}.{row.name}": value
        for row, figures in zip(rows, measured, strict=True)
        for figure, value in figures.items()
    }
    for figure in dict.fromkeys(name for figures in measured for name in figures):
        values = [figures[figure] for figures in measured if figure in figures]
        worst = min(values) if figure in _MORE_IS_BETTER else max(values)
        quantities[f"{figure}.{rows[0].provider}"] = worst
    return quantities


def _latency_quantities(benchmark: Benchmark) -> dict[str, float]:
    candidate = benchmark.candidate
    quantities = {
        "speedup": benchmark.speedup,
        "speedup_low": benchmark.speedup_low,
        "latency_ratio": candidate.p50_ms / benchmark.reference.p50_ms,
        "p50_ms": candidate.p50_ms,
        "p90_ms": candidate.p90_ms,
        "p99_ms": candidate.p99_ms,
    }
    if benchmark.candidate_samples_per_s is not None:
        quantities["samples_per_s"] = benchmark.candidate_samples_per_s
    return quantities


def _loading_quantities(loading: Loading) -> dict[str, float]:
    quantities = {
        "load_ms": loading.candidate_load_ms,
        "load_ratio": loading.load_ratio,
        "load_ratio_high": loading.load_ratio_high,
        "resident_bytes": loading.candidate_resident_bytes,
        "resident_ratio": loading.resident_ratio,
        "resident_ratio_high": loading.resident_ratio_high,
    }
    return {
        f"{name}.{loading.provider}": value
        for name, value in quantities.items()
        if value is not None
    }


def _size_quantities(size: SizeReport) -> dict[str, float]:
    quantities = {
        "size_ratio": size.candidate_bytes / size.reference_bytes,
        "candidate_bytes": size.candidate_bytes,
        "candidate_parameters": size.candidate_parameters,
    }
    if size.reference_parameters:
        quantities["parameter_ratio"] = size.candidate_parameters / size.reference_parameters
    return quantities
