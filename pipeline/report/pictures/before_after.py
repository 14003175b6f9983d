"""Sizes and latencies before and after, as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.drawing import BLUE, GREY, ORANGE, new_figure
from compress_onnx.pipeline.results import RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Pair:
    """One quantity before and after; ``ideal`` is what ``after`` could be at best."""

    title: str
    before: float
    after: float
    text: Callable[[float], str]
    ideal: float | None = None


def before_and_after(report: RunReport) -> Figure:
    """Bars of file size, parameters and latencies, with the ideal latency where it is known."""
    pairs = list(_pairs(report))
    figure = new_figure(max(2.1 * len(pairs), 4.2), 3.2)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for panel, pair in zip(panels, pairs, strict=True):
        _draw_pair(panel, pair)
    return figure


def _pairs(report: RunReport) -> Iterator[_Pair]:
    size, plan = report.size, report.plan
    yield _Pair("File size", size.reference_bytes, size.candidate_bytes, formats.size)
    before, after = size.reference_parameters, size.candidate_parameters
    yield _Pair("Parameters", before, after, formats.short_count)
    if plan is not None:
        before, after = plan.parameters_before, plan.parameters_after
        yield _Pair("Selected linear\nparameters", before, after, formats.short_count)
    for benchmark in report.benchmarks:
        yield _Pair(
            f"Latency p50\n({benchmark.name})",
            benchmark.reference.p50_ms,
            benchmark.candidate.p50_ms,
            formats.milliseconds,
            benchmark.reference.p50_ms / benchmark.ideal_speedup
            if benchmark.ideal_speedup
            else None,
        )


def _draw_pair(panel: Axes, pair: _Pair) -> None:
    labels = ["before", f"after\n{formats.ratio(pair.after, pair.before)}"]
    bars = panel.bar(labels, [pair.before, pair.after], color=[GREY, BLUE], width=0.6)
    panel.bar_label(bars, [pair.text(pair.before), pair.text(pair.after)], padding=2, fontsize=8)
    if pair.ideal is not None:
        panel.hlines(pair.ideal, 1.32, 1.42, color=ORANGE, linewidth=2)
        panel.text(1.46, pair.ideal, "ideal", color=ORANGE, fontsize=8, va="center")
    panel.set_title(pair.title)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.grid(visible=False)
    panel.margins(y=0.15)
