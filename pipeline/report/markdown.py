"""The Markdown summary: a template over a report, in which nothing from a model file is markup.

Names, reasons and paths may come from strangers' files. Everything that the template prints is
escaped, unless a function here made it and marked it as :class:`Markdown`: forgetting to escape
something is therefore safe. Names print as code where they are harmless, else as escaped text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import jinja2

from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.measure.domains import by_set
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.results import (
    GateResult,
    Report,
    RunReport,
    TranslationReport,
    ValidationReport,
)

_MARKUP = re.compile(
    r"[\\`*\[|~$]"  # markup wherever it stands
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, unless inside a word
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)"  # HTML
    r"|^[#>+=-]"  # headings, quotes, lists
)
_HARMLESS_NAME = re.compile(r"[\w.:/(),=+@\[\]-]+")
_LONGEST_NAME = 120


class Markdown(str):
    """Text that is Markdown already and must not be escaped."""

    __slots__ = ()


def render_summary(report: RunReport | TranslationReport, pictures: Sequence[str] = ()) -> str:
    """Render the summary of a run as GitHub-flavoured Markdown.

    Args:
        report: the run.
        pictures: paths of pictures to show, relative to where the summary will be.
    """
    if isinstance(report, RunReport):
        file, plans = "run.md.jinja", {"model": report.plan} if report.plan else {}
    else:
        file, plans = "translation.md.jinja", {"encoder": report.encoder, "decoder": report.decoder}
    return template(file).render(report=report, plans=plans, pictures=pictures)


def printable(text: object) -> str:
    """``text`` on one line, with whatever cannot be shown replaced."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def escape(text: object) -> Markdown:
    """``text`` as it is, in a table cell or a paragraph, whatever it contains."""
    return Markdown(_MARKUP.sub(r"\\\g<0>", printable(text)))


def name(text: object) -> Markdown:
    """A name as code; as escaped text where it holds what code cannot, shortened if very long."""
    line = printable(text).strip() or "(no name)"
    if len(line) > _LONGEST_NAME:
        line = f"{line[: _LONGEST_NAME // 2]}…{line[-_LONGEST_NAME // 2 :]}"
    return Markdown(f"`{line}`") if _HARMLESS_NAME.fullmatch(line) else escape(line)


def _verdict(report: Report) -> Markdown:
    """``PASSED``, or ``FAILED`` with each gate that did."""
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        return Markdown(f"FAILED: {'; '.join(_failure(gate) for gate in failed)}")
    return Markdown(f"PASSED: {_plural(len(report.gates), 'gate')}" if report.gates else "PASSED")


def _failure(gate: GateResult) -> str:
    if gate.value is None:
        reason = f" ({escape(gate.reason)})" if gate.reason else ""
        return f"{escape(gate.quantity)} was not measured{reason}"
    bound = "at least" if gate.limit == "min" else "at most"
    value, threshold = formats.distinct(gate.value, gate.threshold)
    return f"{escape(gate.quantity)} is {value}, must be {bound} {threshold}"


def _gate_figures(gate: GateResult) -> tuple[str, str]:
    """The limit and the value of a gate."""
    sign = "≥" if gate.limit == "min" else "≤"
    value, threshold = formats.distinct(gate.value, gate.threshold)
    return f"{sign} {threshold}", value


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _metric_rows(report: RunReport) -> list[tuple[str, float | None, float]]:
    """``(metric, before, after)``, where ``before`` is ``NAME_reference`` if that was measured.

    Those of further providers have their provider's name behind them.
    """
    if report.validation is None:
        return []
    rows = _rows_of(report.validation)
    for other in report.validation.elsewhere:
        rows += [
            (f"{metric}.{other.provider}", before, after)
            for metric, before, after in _rows_of(other)
        ]
    return rows


def _domain_table(validation: ValidationReport | None) -> dict[str, dict[str, float]]:
    """Each figure by set of samples, where there are several."""
    return by_set(validation) if validation is not None else {}


def _rows_of(validation: ValidationReport) -> list[tuple[str, float | None, float]]:
    metrics = dict(validation.metrics)
    for figure in ("batch_invariance", "batch_invariance_reference"):
        if (cosine := getattr(validation, figure)) is not None:
            metrics[figure] = cosine
    before = {f"{metric}_reference" for metric in metrics} & metrics.keys()
    return [
        (metric, metrics.get(f"{metric}_reference"), value)
        for metric, value in metrics.items()
        if metric not in before
    ]


def _skipped_by_reason(plans: Iterable[CompressionPlan]) -> list[tuple[str, int, str]]:
    """``(reason, nodes, an example)`` over all plans, most frequent first."""
    skipped = [node for plan in plans for node in plan.skipped]
    examples = {node.reason: node.node for node in reversed(skipped)}
    counts = Counter(node.reason for node in skipped)
    return [
        (reason, counts[reason], examples[reason])
        for reason in sorted(counts, key=lambda reason: (-counts[reason], reason))
    ]


def _decisions(plan: CompressionPlan) -> Counter[str]:
    """How many sites there are of each decision."""
    return Counter(site.decision for site in plan.sites)


def _changed_operators(report: RunReport) -> list[tuple[str, int, int]]:
    """``(operator, executed before, executed after)`` where the two differ."""
    before = report.op_counts.get("reference", {})
    after = report.op_counts.get("candidate", {})
    rows = [
        (op, before.get(op, 0), after.get(op, 0)) for op in sorted(before.keys() | after.keys())
    ]
    return [row for row in rows if row[1] != row[2]]


@cache
def template(file: str, package: str = "compress_onnx.pipeline.report") -> jinja2.Template:
    """The template in ``file`` of ``package``; everything that it prints is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=False,  # noqa: S701 - that is for HTML; `finalize` escapes for Markdown
        finalize=lambda value: value if isinstance(value, Markdown) else escape(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "name": name,
        "verdict": _verdict,
        "metric_rows": _metric_rows,
        "by_set": _domain_table,
        "changed_operators": _changed_operators,
        "decisions": _decisions,
        "skipped": _skipped_by_reason,
        "gate_figures": _gate_figures,
        "count": formats.count,
        "milliseconds": formats.milliseconds,
        "ratio": formats.ratio,
        "significant": formats.significant,
        "size": formats.size,
        "times": formats.times,
    }
    return environment.get_template(file)
