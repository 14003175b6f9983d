"""A page that shows how two graphs part along the depth of the model: one picture, one table.

It stands alone: the picture is inside, nothing is fetched.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import jinja2
from markupsafe import Markup

from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.report.drawing import BLUE, MARK, ORANGE, new_figure, styled
from compress_onnx.pipeline.results import InnerComparison

_TEMPLATE = "depth.html.jinja"
_LEAST_ERROR = 1e-9
"""What is drawn of an error of zero."""


def write_depth_page(path: Path, inside: InnerComparison, title: str) -> None:
    """Write the page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compress_onnx.pipeline.report", "."),
        autoescape=True,  # names come from strangers' graphs
        undefined=jinja2.StrictUndefined,
    )
    # matplotlib escapes what it writes.
    picture = Markup(_picture(inside))  # noqa: S704
    page = environment.get_template(_TEMPLATE).render(
        title=title, inside=inside, picture=picture, mark=MARK
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _picture(inside: InnerComparison) -> str:
    """The errors as SVG: one point a value, in the order of the graph."""
    errors = [one.error for one in inside.depth]
    with styled():
        figure = new_figure(9, 3.2)
        axes = figure.subplots()
        known = [(place, error) for place, error in enumerate(errors) if error is not None]
        lost = [place for place, error in enumerate(errors) if error is None]
        heights = [max(error, _LEAST_ERROR) for _, error in known]
        axes.semilogy([place for place, _ in known], heights, ".", color=BLUE, markersize=3)
        for place in lost:
            axes.axvline(place, color=ORANGE, alpha=0.5)
        axes.axhline(inside.tolerance, color=ORANGE, linewidth=1, label="counts as equal below")
        if inside.divergence is not None:
            tensors = [one.tensor for one in inside.depth]
            if inside.divergence.candidate.tensor in tensors:
                first = tensors.index(inside.divergence.candidate.tensor)
                axes.axvline(first, color=ORANGE, linestyle=":", label="first divergence")
        axes.set_xlabel("values in the order of the candidate's graph")
        axes.set_ylabel("relative error")
        axes.legend(loc="upper left")
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Creator": MARK, "Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
