"""A sweep as a table: what each variant keeps, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import QUANTITIES, CompressionSpec
from compress_onnx.pipeline.recipe import MAIN_SET
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.markdown import escape
from compress_onnx.pipeline.results import SweepReport, SweepRow

_TEXT_COLUMNS = 2


def markdown(report: SweepReport) -> str:
    """The table, under a line that says what was measured and where."""
    header, *rows = cells(report)
    numbers = len(header) - _TEXT_COLUMNS
    lines = [
        f"# Sweep: {escape(report.name)}",
        "",
        f"{len(report.rows)} variants, compress-onnx {report.tool_version}, "
        f"{escape(report.environment.processor)}, {report.environment.cores} cores, instruction "
        f"sets {escape(', '.join(report.environment.instruction_sets) or 'not known')}.",
        "",
        _line(header),
        "|" + ":---|" * _TEXT_COLUMNS + "---:|" * numbers,
        *(_line([escape(cell) for cell in row]) for row in rows),
        "",
    ]
    return "\n".join(lines)


def cells(report: SweepReport) -> list[list[str]]:
    """Header and rows as text; columns that no row has are left out."""
    metrics = metric_names(report)
    providers = list(dict.fromkeys(b.name for row in report.rows for b in row.benchmarks))
    head, sets = _domains(report)
    header = ["method", "allocation", "asked", "parameters kept", "file", *metrics]
    header += [f"{head}.{name}" for name in sets]
    header += [text for p in providers for text in (f"speed-up ({p})", f"ideal ({p})")]
    return [header, *(_row(row, metrics, (head, sets), providers) for row in report.rows)]


def _domains(report: SweepReport) -> tuple[str, list[str]]:
    """The first figure of the metric, and the sets beside the main one that it is told of."""
    for row in report.rows:
        if row.by_set:
            head = next(iter(row.metrics), "min_output_cosine")
            return head, [name for name in row.by_set[head] if name != MAIN_SET]
    return "", []


def metric_names(report: SweepReport) -> list[str]:
    """The metrics of all rows, or the outputs' cosine where the recipe has no metric."""
    names = dict.fromkeys(name for row in report.rows for name in row.metrics)
    return list(names) or ["cosine"]


def metric(row: SweepRow, name: str) -> float | None:
    """One figure of a row; without a task metric, the worst output's cosine."""
    if name in row.metrics:
        return row.metrics[name]
    return min((output.cosine for output in row.outputs), default=None)


def method_text(method: MethodSpec) -> str:
    """A method as the command line takes it: ``svdlora:stages=3``."""
    options = ",".join(f"{key}={value}" for key, value in method.options.items())
    return f"{method.name}:{options}" if options else method.name


def asked(variant: CompressionSpec) -> str:
    """The budget of a variant; ``50%`` alone is one of parameters."""
    if variant.rank is not None:
        return f"rank {variant.rank}"
    share = f"{variant.share:.0%}"
    return share if variant.budget == "params" else f"{share} of {QUANTITIES[variant.budget]}"


def _row(
    row: SweepRow,
    metrics: Sequence[str],
    domains: tuple[str, Sequence[str]],
    providers: Sequence[str],
) -> list[str]:
    variant = row.variant
    stored = "" if variant.store == "same" else f" as {variant.store}"
    texts = [method_text(variant.method) + stored, variant.allocation, asked(variant)]
    if row.problem is not None or row.size is None:
        return [
            *texts,
            row.problem or "",
            *[formats.MISSING] * (1 + len(metrics) + len(domains[1]) + 2 * len(providers)),
        ]
    assert row.parameters_after is not None
    assert row.parameters_before is not None
    texts.append(f"{row.parameters_after / row.parameters_before:.1%}")
    texts.append(formats.size(row.size.candidate_bytes))
    texts += [formats.significant(metric(row, name)) for name in metrics]
    head, sets = domains
    texts += [formats.significant(row.by_set.get(head, {}).get(name)) for name in sets]
    measured = {benchmark.name: benchmark for benchmark in row.benchmarks}
    for provider in providers:
        found = measured.get(provider)
        texts.append(formats.times(found.speedup if found else None))
        texts.append(formats.times(found.ideal_speedup if found else None))
    return texts


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"
