"""What trials of ``optimize`` lose against what they take, and the front: those that none beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from compress_onnx.pipeline.report.drawing import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    new_figure,
    save_figure,
    styled,
)
from compress_onnx.pipeline.report.markdown import printable
from compress_onnx.pipeline.results import OptimizeReport, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_TICKS = (0, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20, 50, 100)
"""In multiples of the drop that is allowed."""

_TITLE_WIDTH = 90
"""In characters."""


class _Point(NamedTuple):
    trial: Trial
    drop: float
    height: float


def draw_front(report: OptimizeReport, path: Path) -> None:
    """Draw :func:`front` into ``path``.

    Raises:
        OutputError: ``path`` cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    with styled():
        save_figure(front(report), path)


def front(report: OptimizeReport) -> Figure:
    """Speed-up, or size, against the drop: a mark a trial, rivals by name, a line for the front."""
    figure = new_figure(7.2, 4.2)
    panel = figure.subplots()
    points = [p for trial in report.trials if (p := _point(trial, report)) is not None]
    ours = [point for point in points if not point.trial.rival]
    for index, family in enumerate(dict.fromkeys(point.trial.family for point in ours)):
        members = [point for point in ours if point.trial.family == family]
        colour = COLOURS[index % len(COLOURS)]
        _draw(panel, members, "o", color=colour, label=printable(family or "ours"))
    rivals = [point for point in points if point.trial.rival]
    _draw(panel, rivals, "s", color=GREY, label="without this tool")
    for point in rivals:
        place = point.drop, point.height
        name = printable(point.trial.name)
        panel.annotate(name, place, (4, 4), textcoords="offset points", fontsize=7)
    front = sorted((p for p in points if p.trial.on_front), key=lambda p: (p.drop, p.height))
    _draw(panel, front, "-", color=BLUE, label="front", drawstyle="steps-post", linewidth=1)
    taken = [point for point in points if point.trial.name == report.winner]
    _draw(
        panel, taken, "*", color=ORANGE, label=f"taken: {printable(report.winner)}", markersize=12
    )
    panel.axvline(report.max_drop, color=GREY, linewidth=0.8, linestyle="--")
    quantity = next((t.drop.quantity for t in report.trials if t.drop is not None), "drop")
    panel.set(xlabel=f"{quantity}, on the samples that choose", ylabel=_label(report))
    if report.objective == "latency":
        title = f"{report.provider}, {printable(report.inputs)}"
        panel.set_title(fill(title, _TITLE_WIDTH), fontsize=7)
    panel.set_ylim(bottom=0)
    # Linear up to what may be lost, logarithmic beyond: some rivals are far away.
    scale = max(report.max_drop, 1e-6)
    panel.set_xscale("symlog", linthresh=scale, linscale=2)
    furthest = max((point.drop for point in points), default=scale)
    ticks = [scale * multiple for multiple in _TICKS if scale * multiple <= max(furthest, scale)]
    panel.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], minor=False)
    panel.minorticks_off()
    panel.set_xlim(left=-0.05 * scale)
    if points:
        figure.legend(loc="outside right upper", fontsize=7)
    return figure


def _label(report: OptimizeReport) -> str:
    return "megabytes" if report.objective == "size" else "times as fast as the original"


def _point(trial: Trial, report: OptimizeReport) -> _Point | None:
    """Where a trial is; None where that was not measured."""
    if trial.drop is None or not math.isfinite(trial.drop.value):
        return None
    height = trial.speedup
    if report.objective == "size":
        height = None if trial.size_bytes is None else trial.size_bytes / 1e6
    return None if height is None else _Point(trial, trial.drop.value, height)


def _draw(panel: Axes, points: Sequence[_Point], style: str, **look: Any) -> None:  # noqa: ANN401
    if points:
        look = {"markersize": 5} | look
        panel.plot([p.drop for p in points], [p.height for p in points], style, **look)
