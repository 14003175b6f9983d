"""Fidelity of a sweep's variants against their size."""

from __future__ import annotations

from pathlib import Path

from compress_onnx.pipeline.report.drawing import new_figure, save_figure, styled
from compress_onnx.pipeline.report.markdown import printable
from compress_onnx.pipeline.results import SweepReport


def draw_pareto(report: SweepReport, path: Path) -> None:
    """Draw the first metric of a sweep against the parameters kept, one line a method.

    Raises:
        OutputError: ``path`` cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    with styled():
        figure = new_figure(5.2, 3.6)
        panel = figure.subplots()
        for index, (label, points) in enumerate(_pareto_lines(report).items()):
            share, value = zip(*sorted(points), strict=True)
            panel.plot(share, value, marker="o", markersize=3.5, label=label, color=f"C{index}")
        panel.set_xlabel("linear parameters kept [%]")
        panel.set_ylabel(next((name for row in report.rows for name in row.metrics), "cosine"))
        panel.legend(fontsize=7)
        save_figure(figure, path)


def _pareto_lines(report: SweepReport) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in report.rows:
        if row.parameters_after is None or not row.parameters_before:
            continue
        values = [*row.metrics.values(), *(output.cosine for output in row.outputs)]
        method = " ".join([row.variant.method.name, *map(str, row.variant.method.options.values())])
        stored = "" if row.variant.store == "same" else f" as {row.variant.store}"
        label = printable(f"{method}{stored}, {row.variant.allocation}")
        share = 100 * row.parameters_after / row.parameters_before
        lines.setdefault(label, []).append((share, values[0]))
    return lines
