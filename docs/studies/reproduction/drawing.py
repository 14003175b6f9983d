"""Curves of an experiment, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress_onnx.pipeline.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    new_figure,
    save_figure,
    styled,
)

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Lines by label over one pair of axes; ``level`` is drawn across, such as the original's."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    level: float | None = None
    logarithmic: bool = False


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Draw ``panels`` side by side, with one legend where their lines have the same labels.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    with styled():
        figure = new_figure(4.2 * len(panels), 3.4)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        shared = len(panels) > 1 and len({tuple(panel.lines) for panel in panels}) == 1
        for axis, panel in zip(axes, panels, strict=True):
            for colour, (label, points) in zip(COLOURS, panel.lines.items(), strict=False):
                x, y = zip(*sorted(points), strict=True)
                text = label.replace("`", "")
                axis.plot(x, y, marker="o", markersize=3.5, label=text, color=colour)
            if panel.level is not None:
                axis.axhline(panel.level, color=GREY, linewidth=0.8, linestyle="--")
            axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
            if panel.logarithmic:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:g}")
            if not shared:
                axis.legend(fontsize=7)
        if shared:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        save_figure(figure, path)
