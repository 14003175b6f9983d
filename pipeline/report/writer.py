"""Writing and reading the report of a run, and writing that of a sweep.

JSON has no NaN and no infinity; the figures of a damaged model have. They are written as the
strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which read back as what they were; ``null``
means that there was nothing to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.validation_text import first_problem
from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.report.markdown import render_summary
from compress_onnx.pipeline.report.page import (
    PAGE_NAME,
    report_page,
    sweep_page,
    why_no_charts,
    write_page,
)
from compress_onnx.pipeline.report.pictures import draw_pareto, draw_pictures
from compress_onnx.pipeline.report.sweep import markdown
from compress_onnx.pipeline.report.trials import PARETO_NAME, pareto_json
from compress_onnx.pipeline.results import Result, RunReport, SweepReport, TranslationReport

REPORT_NAME = "report.json"
SUMMARY_NAME = "summary.md"
SWEEP_NAME = "sweep.json"
SWEEP_TABLE_NAME = "sweep.md"
SWEEP_PICTURE_NAME = "pareto.png"


def write_report(
    report: RunReport | TranslationReport,
    folder: Path,
    spectra: Sequence[SiteSpectrum] = (),
    *,
    pictures: bool = True,
) -> None:
    """Write ``report.json``, ``report.html``, ``summary.md``, ``pictures/*.png`` into ``folder``.

    A translation's report has no pictures; that of a run that optimized has ``pareto.json`` too.

    Args:
        report: the run.
        folder: created where it is missing.
        spectra: one for each site that the pictures of spectra can show; without any, those
            pictures are left out.
        pictures: whether to draw at all.

    Raises:
        OutputError: ``folder`` cannot be written.
        MissingDependencyError: pictures are to be drawn, and matplotlib is not installed.
    """
    # Pictures first: where they cannot be drawn, nothing is written.
    drawn = (
        draw_pictures(report, spectra, folder) if pictures and isinstance(report, RunReport) else []
    )
    names = [picture.relative_to(folder).as_posix() for picture in drawn]
    if isinstance(report, RunReport) and report.optimize is not None:
        write_text(folder / PARETO_NAME, pareto_json(report.optimize))
    page = report_page(report, spectra)
    write_page(folder / PAGE_NAME, page, pictures=why_no_charts() is None)
    write_text(folder / REPORT_NAME, report_json(report))
    write_text(folder / SUMMARY_NAME, render_summary(report, names))


def write_sweep(report: SweepReport, folder: Path) -> None:
    """Write ``sweep.json``, ``report.html``, ``sweep.md`` and ``pareto.png`` into ``folder``.

    Raises:
        OutputError: ``folder`` cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    draw_pareto(report, folder / SWEEP_PICTURE_NAME)
    write_page(folder / PAGE_NAME, sweep_page(report), pictures=why_no_charts() is None)
    write_text(folder / SWEEP_NAME, report_json(report))
    write_text(folder / SWEEP_TABLE_NAME, markdown(report))


def report_json(report: Result) -> str:
    """The text of ``report.json``."""
    # Through plain data: pydantic's models would write what is not finite as null.
    return to_json(report.model_dump(), indent=2, inf_nan_mode="strings").decode() + "\n"


def write_json(path: Path, content: object) -> None:
    """Write plain data, or results in it, as JSON in one step.

    Raises:
        OutputError: it cannot be written.
    """
    plain = to_json(content, indent=2, inf_nan_mode="strings").decode()
    write_text(path, f"{plain}\n")


class _Kind(BaseModel):
    """Of all that a report holds, what kind it is; the first ones did not say."""

    kind: Literal["run", "translation"] = "run"


def read_report(folder: Path) -> RunReport | TranslationReport:
    """Read the report that a run left in ``folder``, or that is the file of that name.

    Raises:
        RequestError: there is none, or it is damaged; the message names the key.
    """
    path = folder if folder.is_file() else folder / REPORT_NAME
    try:
        content = path.read_bytes()
        if _Kind.model_validate_json(content).kind == "translation":
            return TranslationReport.model_validate_json(content)
        return RunReport.model_validate_json(content)
    except OSError as error:
        raise RequestError(
            f"cannot read {path}: {error.strerror}; name the folder that a run wrote"
        ) from error
    except ValidationError as error:
        raise RequestError(f"{path} is no report.json: {first_problem(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file in one step.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
