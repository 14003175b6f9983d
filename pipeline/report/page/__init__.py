"""A page to open: one file, nothing fetched, that says what a result means.

blocks     what a page is made of: sections of tables and charts
charts     the pictures, as Vega-Lite specifications
sections   the parts that several pages have
pages      a page for each kind of result
render     the file: template, style and scripts in one
"""

from compress_onnx.pipeline.report.page.pages import (
    changes_page,
    comparison_page,
    optimize_page,
    report_page,
    sweep_page,
)
from compress_onnx.pipeline.report.page.render import (
    PAGE_NAME,
    is_page_of_ours,
    why_no_charts,
    write_page,
)

__all__ = [
    "PAGE_NAME",
    "changes_page",
    "comparison_page",
    "is_page_of_ours",
    "optimize_page",
    "report_page",
    "sweep_page",
    "why_no_charts",
    "write_page",
]
