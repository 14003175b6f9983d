"""Pictures of a run and of a sweep, as PNG.

=========================  =====================================================================
``explained-variance``     cumulative energy of every site's spectrum against its rank share
``error-against-rank``     the least error at every rank for a selection of sites, and the choice
``before-and-after``       sizes and latencies
``front``                  of ``optimize``: speed-up or size against the drop, rivals included
``pareto``                 of a sweep: the first metric against the parameters kept
=========================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.report.drawing import save_figure, styled
from compress_onnx.pipeline.report.pictures.before_after import before_and_after
from compress_onnx.pipeline.report.pictures.front import draw_front, front
from compress_onnx.pipeline.report.pictures.pareto import draw_pareto
from compress_onnx.pipeline.report.pictures.spectra import error_against_rank, explained_variance
from compress_onnx.pipeline.results import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES_FOLDER", "SiteSpectrum", "draw_front", "draw_pareto", "draw_pictures"]

PICTURES_FOLDER = "pictures"


def draw_pictures(report: RunReport, spectra: Sequence[SiteSpectrum], folder: Path) -> list[Path]:
    """Draw into ``folder/pictures``; pictures for which there is nothing to show are left out.

    Args:
        report: the run.
        spectra: the sites whose spectra are known, in any number and order.
        folder: the folder of the report.

    Returns:
        The pictures written.

    Raises:
        OutputError: the folder cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    factored = [spectrum for spectrum in spectra if spectrum.rank is not None]
    with styled():
        figures: dict[str, Figure] = {}
        if spectra:
            figures["explained-variance"] = explained_variance(spectra)
        if factored:
            figures["error-against-rank"] = error_against_rank(factored)
        figures["before-and-after"] = before_and_after(report)
        if report.optimize is not None:
            figures["front"] = front(report.optimize)
        return [
            save_figure(figure, folder / PICTURES_FOLDER / f"{name}.png")
            for name, figure in figures.items()
        ]
