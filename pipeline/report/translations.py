"""The report of a translation recipe's run: the same files as any run's, with its own summary."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from compress_onnx.graph_passes.planning.plan import CompressionPlan
from compress_onnx.pipeline.report.markdown import skipped_by_reason, template
from compress_onnx.pipeline.report.writer import REPORT_NAME, SUMMARY_NAME, report_json, write_text
from compress_onnx.pipeline.results import TranslationReport


def write_translation_report(report: TranslationReport, folder: Path) -> None:
    """Write ``report.json`` and ``summary.md`` into ``folder``.

    Raises:
        OutputError: ``folder`` cannot be written.
    """
    write_text(folder / REPORT_NAME, report_json(report))
    write_text(folder / SUMMARY_NAME, render_translation(report))


def render_translation(report: TranslationReport) -> str:
    """Render the summary of a run as GitHub-flavoured Markdown."""
    return template("translations.md.jinja").render(
        report=report,
        parts=(("encoder", report.encoder), ("decoder", report.decoder)),
        skipped=skipped_by_reason((*report.encoder.skipped, *report.decoder.skipped)),
        counted=_counted,
        recovered=False,
    )


def _counted(plan: CompressionPlan) -> Counter[str]:
    return Counter(site.decision for site in plan.sites)
