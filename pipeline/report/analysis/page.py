"""Writing an analysis: ``analysis.json``, ``analysis.md`` and its pictures, into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from compress_onnx.pipeline.report.analysis import Analysis, AnalysisReport, SiteProfile
from compress_onnx.pipeline.report.analysis.labels import MOST_PANELS, joined, labels
from compress_onnx.pipeline.report.analysis.layernorm import METHODS, SiteGroup, as_text
from compress_onnx.pipeline.report.analysis.pictures import (
    DENSITIES_NAME,
    TEST_NAME,
    VARIANCE_NAME,
    draw_analysis,
)
from compress_onnx.pipeline.report.formats import MISSING
from compress_onnx.pipeline.report.markdown import template
from compress_onnx.pipeline.report.writer import report_json, write_text

REPORT_NAME = "analysis.json"
PAGE_NAME = "analysis.md"


def write_analysis(analysis: Analysis, folder: Path) -> None:
    """Write ``analysis`` into ``folder``, which is created where it is missing.

    Raises:
        OutputError: ``folder`` cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    draw_analysis(analysis, folder)
    write_text(folder / REPORT_NAME, report_json(analysis.report))
    write_text(folder / PAGE_NAME, render_analysis(analysis.report))


def render_analysis(report: AnalysisReport) -> str:
    """The page as GitHub-flavoured Markdown."""
    named = labels(list(dict.fromkeys(site.kind for site in report.sites)))
    rows = [
        _kind_row(label, [site for site in report.sites if site.kind == kind])
        for kind, label in named.items()
    ]
    readers = [joined([named[kind] for kind in row.kinds]) for row in report.inputs]
    return template("page.md.jinja", "compress_onnx.pipeline.report.analysis").render(
        report=report,
        pictures={"variance": VARIANCE_NAME, "densities": DENSITIES_NAME, "test": TEST_NAME},
        kinds=rows,
        undrawn=max(len(rows) - MOST_PANELS, 0),
        inputs=list(zip(readers, report.inputs, strict=True)),
        methods=METHODS,
        groups=[_cells(group) for group in report.test.groups],
    )


class _KindRow(NamedTuple):
    """Sites that are the same in every layer; ranks as ``90 % / 99 %``."""

    label: str
    layers: int
    shape: str
    weights: str
    inputs: str
    outputs: str


def _kind_row(label: str, sites: Sequence[SiteProfile]) -> _KindRow:
    first = sites[0]
    return _KindRow(
        label,
        len(sites),
        f"{first.in_features}×{first.out_features}",
        _medians([site.weights for site in sites]),
        _medians([site.inputs for site in sites]),
        _medians([site.outputs for site in sites]),
    )


def _medians(ranks: Sequence[tuple[int, ...]]) -> str:
    known = [pair for pair in ranks if pair]
    if not known:
        return MISSING
    return " / ".join(f"{median(column):.0f}" for column in zip(*known, strict=True))


def _cells(group: SiteGroup) -> list[str]:
    """A row of the table of groups."""
    return [
        "a normalization" if group.normalized else "anything else",
        str(group.sites),
        str(group.inputs),
        as_text(group.variation),
        *(as_text(group.ratios[method]) for method in METHODS),
        as_text(group.exact_over_diagonal),
    ]
