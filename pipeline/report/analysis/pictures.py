"""Pictures of an analysis, as PNG.

=======================  =======================================================================
``explained-variance``   weights, inputs and outputs; a panel a kind of site, a line a layer
``densities``            of |x| and of the units' deviations; a panel a kind, a line a layer
``layernorm``            error over that of plain SVD, by what feeds the sites; the units' scales
=======================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress_onnx.pipeline.report.analysis import Analysis, NormalizationTest
from compress_onnx.pipeline.report.analysis.densities import Density
from compress_onnx.pipeline.report.analysis.labels import drawn_kinds, joined, labels
from compress_onnx.pipeline.report.analysis.layernorm import METHODS, SVD, SiteComparison, SiteGroup
from compress_onnx.pipeline.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    add_layer_scale,
    layer_colours,
    new_figure,
    save_figure,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANCE_NAME, DENSITIES_NAME, TEST_NAME = (
    "explained-variance.png",
    "densities.png",
    "layernorm.png",
)
_BINS_A_LINE = 4


class _Line(NamedTuple):
    layer: int | None
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def draw_analysis(analysis: Analysis, folder: Path) -> list[Path]:
    """Draw into ``folder``; pictures for which there is nothing to show are left out.

    Returns:
        The pictures written.

    Raises:
        OutputError: ``folder`` cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    with styled():
        figures: dict[str, Figure] = {}
        if analysis.report.sites:
            figures[VARIANCE_NAME] = _explained_variance(analysis)
        if analysis.report.inputs:
            figures[DENSITIES_NAME] = _densities(analysis)
        if analysis.report.test.groups:
            figures[TEST_NAME] = _comparison(analysis.report.test)
        return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _explained_variance(analysis: Analysis) -> Figure:
    sites = analysis.report.sites
    tails: dict[str, list[NDArray[np.float64] | None]] = {
        "weights": [*(spectrum.weight_tail for spectrum in analysis.spectra)],
        "inputs": [spectrum.input_tail for spectrum in analysis.spectra],
        "outputs": [spectrum.activation_tail for spectrum in analysis.spectra],
    }
    kinds = drawn_kinds([site.kind for site in sites])
    named = labels(list(dict.fromkeys(site.kind for site in sites)))
    figure = new_figure(max(1.6 * len(kinds), 4.5), 4.8)
    panels = figure.subplots(len(tails), len(kinds), sharex=True, sharey=True, squeeze=False)
    for row, (what, curves) in zip(panels, tails.items(), strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            lines = [
                _Line(site.layer, np.linspace(0, 1, len(tail)), 1 - tail)
                for site, tail in zip(sites, curves, strict=True)
                if site.kind == kind and tail is not None
            ]
            _draw_lines(panel, lines, _last_layer(analysis))
            panel.set(xlim=(0, 1), ylim=(0, 1.02))
        row[0].set_ylabel(f"variance of {what}")
    for panel, kind in zip(panels[0], kinds, strict=True):
        panel.set_title(shorten(named[kind]), fontsize=7.5)
    figure.supxlabel("directions / all directions", fontsize=9)
    _add_layers(figure, panels, _last_layer(analysis))
    return figure


def _densities(analysis: Analysis) -> Figure:
    inputs = analysis.report.inputs
    named = labels(list(dict.fromkeys(kind for row in inputs for kind in row.kinds)))
    titles = [joined([named[kind] for kind in row.kinds]) for row in inputs]
    kinds = drawn_kinds(titles)
    figure = new_figure(max(2 * len(kinds), 4.5), 3.9)
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex="row")
    rows = {"size of x": analysis.magnitudes, "deviation of a unit": analysis.deviations}
    for row, (what, densities) in zip(panels, rows.items(), strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            lines = [
                _density_line(profile.layer, density)
                for profile, title, density in zip(inputs, titles, densities, strict=True)
                if title == kind
            ]
            _draw_lines(panel, lines, _last_layer(analysis))
            _scale_by_decades(panel)
            panel.set_xlabel(what)
            panel.set_ylim(bottom=0)
        row[0].set_ylabel("density / decade")
    low, high = _range(analysis.magnitudes)
    panels[0, 0].set_xlim(low, high)
    for panel, kind in zip(panels[0], kinds, strict=True):
        fed_by = next(r.fed_by for r, title in zip(inputs, titles, strict=True) if title == kind)
        panel.set_title(f"{shorten(kind)}\nfrom {shorten(fed_by)}", fontsize=7)
    _add_layers(figure, panels, _last_layer(analysis))
    return figure


def _scale_by_decades(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.locator_params(axis="x", numticks=3)
    panel.minorticks_off()
    panel.xaxis.set_major_formatter("{x:g}")  # the usual one writes formulas
    panel.tick_params(axis="x", labelsize=7)


def _density_line(layer: int | None, density: Density) -> _Line:
    """The density in somewhat wider bins, at their middles."""
    count = len(density.share)
    starts = np.arange(0, count, _BINS_A_LINE)
    edges = np.log10(density.edges[np.append(starts, count)])
    height = np.add.reduceat(density.share, starts) / np.diff(edges)
    return _Line(layer, 10 ** ((edges[1:] + edges[:-1]) / 2), height)


def _range(densities: Sequence[Density]) -> tuple[float, float]:
    """What holds all but the smallest hundredth of the numbers."""
    lows = [low for density in densities if (low := density.quantile(0.01 + density.zeros)) > 0]
    return min(lows, default=0.1), max(float(density.edges[-1]) for density in densities)


def _last_layer(analysis: Analysis) -> int:
    return max((site.layer or 0 for site in analysis.report.sites), default=0)


def _draw_lines(panel: Axes, lines: Sequence[_Line], last: int) -> None:
    colours = layer_colours(last)
    for line in lines:
        colour = GREY if line.layer is None else colours[line.layer]
        panel.plot(line.x, line.y, color=colour, linewidth=1)


def _add_layers(figure: Figure, panels: NDArray[np.object_], last: int) -> None:
    """Say which colour is which layer, where there is more than one."""
    if last > 0:
        add_layer_scale(figure, panels, last)


def _comparison(test: NormalizationTest) -> Figure:
    figure = new_figure(8.4, 3.4)
    ratios, scales = figure.subplots(1, 2, width_ratios=[3, 1])
    for place, group in enumerate(test.groups):
        sites = [site for site in test.sites if site.normalized == group.normalized]
        colour = BLUE if group.normalized else ORANGE
        _draw_ratios(ratios, sites, group, colour)
        variations = [site.variation for site in sites]
        scales.plot([place] * len(sites), variations, "o", color=colour, alpha=0.4, markersize=4)
    ratios.axhline(1, color=GREY, linewidth=1)
    ratios.set_xticks(range(len(METHODS)), METHODS)
    ratios.set_title("held-out error over that of plain SVD, site by site")
    ratios.set_ylim(bottom=0)
    ratios.legend()
    scales.set_xticks(range(len(test.groups)), [_name(group) for group in test.groups])
    scales.set_title("variation of the units' scale")
    scales.set_ylim(bottom=0)
    scales.margins(x=0.5)
    return figure


def _draw_ratios(
    panel: Axes, sites: Sequence[SiteComparison], group: SiteGroup, colour: str
) -> None:
    """One dot a site, and the geometric mean with its interval beside the dots."""
    places = np.arange(len(METHODS)) + (-0.2 if group.normalized else 0.1)
    for place, method in zip(places, METHODS, strict=True):
        found = [site.errors[method] / site.errors[SVD] for site in sites if site.errors[SVD] > 0]
        panel.plot([place] * len(found), found, "o", color=colour, alpha=0.3, markersize=3)
    means = [group.ratios[method] for method in METHODS]
    values = np.array([mean.value for mean in means])
    low = values - [mean.value if mean.low is None else mean.low for mean in means]
    high = [mean.value if mean.high is None else mean.high for mean in means] - values
    panel.errorbar(
        places + 0.09,
        values,
        yerr=np.array([low, high]),
        fmt="D",
        color=colour,
        markersize=4,
        capsize=3,
        label=_name(group).replace("\n", " "),
    )


def _name(group: SiteGroup) -> str:
    return "after a\nnormalization" if group.normalized else "elsewhere"
