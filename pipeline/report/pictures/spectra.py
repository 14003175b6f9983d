"""Spectra of sites: how much energy is in how many ranks, and what the chosen rank leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.report import formats
from compress_onnx.pipeline.report.drawing import BLUE, COLOURS, GREY, ORANGE, new_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = 12
_COLUMNS = 4


def explained_variance(spectra: Sequence[SiteSpectrum]) -> Figure:
    """One line a site and the median of each group, of the weights and of calibrated outputs."""
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
    return COLOURS[index] if index < len(COLOURS) else GREY


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


def error_against_rank(factored: Sequence[SiteSpectrum]) -> Figure:
    """The least error at every rank and the rank chosen; a panel a site."""
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
