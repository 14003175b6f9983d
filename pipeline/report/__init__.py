"""The report of a run: ``report.json`` for machines, a Markdown summary and pictures for people."""

from compress_onnx.pipeline.compress.spectra import SiteSpectrum
from compress_onnx.pipeline.report.markdown import render_summary
from compress_onnx.pipeline.report.pictures import draw_pictures
from compress_onnx.pipeline.report.translations import render_translation, write_translation_report
from compress_onnx.pipeline.report.writer import read_report, write_report

__all__ = [
    "SiteSpectrum",
    "draw_pictures",
    "read_report",
    "render_summary",
    "render_translation",
    "write_report",
    "write_translation_report",
]
