"""What all pictures share: style, colours, saving.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.report.markdown import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
STYLE: dict[Any, Any] = {  # the stubs want literal keys
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 120,
    "text.parse_math": False,  # site names are no formulas
}
_LONGEST_TITLE = 34


def why_no_pictures() -> str | None:
    """Why pictures cannot be drawn here, and what to do about it; None where they can."""
    if find_spec("matplotlib") is not None:
        return None
    return 'pictures need matplotlib: pip install "compress-onnx[pictures]"'


def require_pictures() -> None:
    """Make sure that pictures can be drawn, before work is spent on what they show.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if reason := why_no_pictures():
        raise MissingDependencyError(reason)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    with atomic_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it draws a box instead
        figure.savefig(temporary)
    return path


def shorten(text: str) -> str:
    """The end of a name, where module paths differ."""
    line = printable(text)
    return line if len(line) <= _LONGEST_TITLE else f"…{line[1 - _LONGEST_TITLE :]}"
