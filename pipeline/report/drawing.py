"""What all pictures share: style, colours, saving. The only module that imports matplotlib.

matplotlib is optional. Whoever draws does so inside :func:`styled`, which raises where it is
missing; a command calls :func:`require_pictures` before it spends minutes on what it will draw.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.report.markdown import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "compress-onnx"
"""In every picture, as the name of what drew it."""

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_STYLE: dict[Any, Any] = {  # the stubs want literal keys
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
_HEAD_BYTES = 2000


def why_no_pictures() -> str | None:
    """Why pictures cannot be drawn here, and what to do about it; None where they can."""
    if find_spec("matplotlib") is not None:
        return None
    return 'pictures need matplotlib: pip install "compress-onnx[pictures]"'


def require_pictures() -> None:
    """Check that pictures can be drawn, without importing anything.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if reason := why_no_pictures():
        raise MissingDependencyError(reason)


@contextmanager
def styled() -> Iterator[None]:
    """Draw the figures of the body in the common style; the caller's own settings come back.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_pictures()
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches; only inside :func:`styled`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure``, as the ending of ``path`` says: ``.png`` or ``.svg``.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    with atomic_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it draws a box instead
        mark = "Software" if path.suffix == ".png" else "Creator"
        figure.savefig(temporary, metadata={mark: MARK})
    return path


def is_picture_of_ours(path: Path) -> bool:
    """Whether ``path`` is a picture that :func:`save_figure` wrote."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def layer_colours(last: int) -> NDArray[np.float64]:
    """Colours ``[last + 1, 4]`` (RGBA, 0 to 1) of the layers 0 to ``last``, dark to light."""
    import matplotlib as mpl

    # The end of the scale is a yellow that is hard to see on white.
    colours: NDArray[np.float64] = mpl.colormaps["viridis"](
        0.9 * np.arange(last + 1) / max(last, 1)
    )
    return colours


def add_layer_scale(figure: Figure, panels: NDArray[np.object_], last: int) -> None:
    """Add a scale beside ``panels`` that says which colour is which layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, NoNorm

    scale = ScalarMappable(NoNorm(0, last), ListedColormap(layer_colours(last)))
    ticks = sorted({0, last // 2, last})
    figure.colorbar(scale, ax=panels, label="layer", ticks=ticks, shrink=0.6, aspect=30)


def shorten(text: str) -> str:
    """The end of a name, where module paths differ."""
    line = printable(text)
    return line if len(line) <= _LONGEST_TITLE else f"…{line[1 - _LONGEST_TITLE :]}"
