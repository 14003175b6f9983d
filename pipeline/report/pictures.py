"""Pictures of a run, as PNG.

=========================  =====================================================================
``explained-variance``     cumulative energy of every site's spectrum against its rank share
``error-against-rank``     the least error at every rank for a selection of sites, and the choice
``before-and-after``       sizes and latencies
=========================  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    STYLE,
    new_figure,
    save_figure,
    shorten,
    why_no_pictures,
)
from compress_onnx.pipeline.report.markdown import printable
from compress_onnx.pipeline.results import RunReport, SweepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES_FOLDER = "pictures"

_GROUP_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PANELS = 12
_COLUMNS = 4


@dataclass(frozen=True, eq=False)
class SiteSpectrum:
    """What truncating one site's weight of shape [K, N] costs at every rank.

    Attributes:
        site: the site's name.
        group: the group that it belongs to, such as ``attention``.
        weight_tail: relative *squared* error at rank 0, 1, … in the weight metric,
            ``[min(K, N) + 1]``.
        activation_tail: the same in the metric of the site's inputs, ``[min(K, N) + 1]``; ``None``
            without calibration.
        rank: the rank chosen; ``None`` where the site stays dense.
        reached: the relative error reached at ``rank``, *not* squared, in the activation metric
            where there is one.
        input_tail: the share of the inputs' variance beyond their first 0, 1, … principal
            components, ``[K + 1]``; ``None`` without calibration.
    """

    site: str
    group: str
    weight_tail: NDArray[np.float64]
    activation_tail: NDArray[np.float64] | None
    rank: int | None
    reached: float | None
    input_tail: NDArray[np.float64] | None = None


def draw_pictures(report: RunReport, spectra: Sequence[SiteSpectrum], folder: Path) -> list[Path]:
    """Draw into ``folder/pictures``; pictures for which there is nothing to show are left out.

    Args:
        report: the run.
        spectra: the sites whose spectra are known, in any number and order.
        folder: the folder of the report.

    Returns:
        The pictures written; none without matplotlib.

    Raises:
        OutputError: the folder cannot be written.
    """
    if why_no_pictures():
        return []
    import matplotlib as mpl

    factored = [spectrum for spectrum in spectra if spectrum.rank is not None]
    with mpl.rc_context(STYLE):
        figures: dict[str, Figure] = {}
        if spectra:
            figures["explained-variance"] = _explained_variance(spectra)
        if factored:
            figures["error-against-rank"] = _error_against_rank(factored)
        figures["before-and-after"] = _before_and_after(report)
        return [
            save_figure(figure, folder / PICTURES_FOLDER / f"{name}.png")
            for name, figure in figures.items()
        ]


def _explained_variance(spectra: Sequence[SiteSpectrum]) -> Figure:
    tails = {"of the weights": [(s.group, s.weight_tail) for s in spectra]}
    calibrated = [(s.group, s.activation_tail) for s in spectra if s.activation_tail is not None]
    if calibrated:
        tails["of the outputs on calibrated inputs"] = calibrated
    figure = new_figure(4.6 * len(tails), 3.8)
    panels = figure.subplots(1, len(tails), sharey=True, squeeze=False)[0]
    groups = sorted({spectrum.group for spectrum in spectra})
    for panel, (title, lines) in zip(panels, tails.items(), strict=True):
        for index, group in enumerate(groups):
            members = [tail for name, tail in lines if name == group]
            _draw_group(panel, members, group, _group_colour(index))
        panel.set(title=f"Energy {title}", xlabel="rank / full rank", xlim=(0, 1), ylim=(0, 1.02))
    panels[0].set_ylabel("share of energy kept")
    panels[-1].legend(loc="lower right")
    return figure


def _group_colour(index: int) -> str:
    return _GROUP_COLOURS[index] if index < len(_GROUP_COLOURS) else GREY


def _draw_group(panel: Axes, tails: Sequence[NDArray[np.float64]], group: str, colour: str) -> None:
    """One faint line a site, and the median of the group over them."""
    if not tails:
        return
    share = np.linspace(0, 1, 201)
    kept = np.array([np.interp(share, np.linspace(0, 1, len(t)), 1 - t) for t in tails])
    faint = max(0.06, 0.5 / math.sqrt(len(tails)))
    panel.plot(share, kept.T, color=colour, alpha=faint, linewidth=0.7)
    label = f"{shorten(group)} ({len(tails)})"
    panel.plot(share, np.median(kept, axis=0), color=colour, linewidth=2, label=label)


def _error_against_rank(factored: Sequence[SiteSpectrum]) -> Figure:
    shown = _selection(factored)
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(max(2.6 * columns, 5.2), 1.9 * rows + 0.7)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, spectrum in zip(panels.flat, shown, strict=False):
        _draw_error(panel, spectrum)
    for panel in panels.flat[len(shown) - columns : len(shown)]:
        panel.set_xlabel("rank")
    for panel in panels.flat[len(shown) :]:
        panel.set_axis_off()
    figure.suptitle(_selection_title(len(shown), len(factored)), fontsize=10)
    figure.supylabel("relative error", fontsize=9)
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _selection(factored: Sequence[SiteSpectrum]) -> list[SiteSpectrum]:
    """At most ``_PANELS`` sites, from the largest error reached to the smallest, evenly spaced."""
    ordered = sorted(factored, key=_reached, reverse=True)
    count = min(_PANELS, len(ordered))
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


def _reached(spectrum: SiteSpectrum) -> float:
    """The error reached, with unknown ones last and those that are no number first."""
    if spectrum.reached is None:
        return -1.0
    return math.inf if math.isnan(spectrum.reached) else spectrum.reached


def _selection_title(shown: int, factored: int) -> str:
    if shown == factored:
        return "Least error at every rank, largest error first"
    return f"Least error at every rank: {shown} of {factored} sites, largest to smallest error"


def _draw_error(panel: Axes, spectrum: SiteSpectrum) -> None:
    ranks = np.arange(len(spectrum.weight_tail))
    panel.plot(ranks, _error(spectrum.weight_tail), color=GREY, label="least, of the weight")
    if spectrum.activation_tail is not None:
        error = _error(spectrum.activation_tail)
        panel.plot(ranks, error, color=BLUE, label="least, on calibrated inputs")
    if spectrum.rank is not None:
        _mark_choice(panel, spectrum.rank, spectrum.reached)
    panel.set_title(shorten(spectrum.site), fontsize=7.5)
    panel.set(xlim=(0, ranks[-1]), ylim=(0, 1.05))


def _mark_choice(panel: Axes, rank: int, reached: float | None) -> None:
    panel.axvline(rank, color=ORANGE, linewidth=0.8, linestyle="--")
    if reached is not None:
        panel.plot([rank], [reached], "o", color=ORANGE, markersize=5, label="chosen and reached")
    panel.annotate(
        f"rank {rank}: {formats.significant(reached, 2)}",
        (0.97, 0.95),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=8,
    )


def _error(tail: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.clip(tail, 0, None))


@dataclass(frozen=True)
class _Pair:
    """One quantity before and after; ``ideal`` is what ``after`` could be at best."""

    title: str
    before: float
    after: float
    text: Callable[[float], str]
    ideal: float | None = None


def _before_and_after(report: RunReport) -> Figure:
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
    before, after = plan.parameters_before, plan.parameters_after
    yield _Pair("Selected linear\nparameters", before, after, formats.short_count)
    for benchmark in report.benchmarks:
        yield _Pair(
            f"Latency p50\n({benchmark.provider})",
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


def draw_pareto(report: SweepReport, path: Path) -> None:
    """Draw the first metric of a sweep against the parameters kept, one line a method.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
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
