"""The file of a page: template, style, scripts and data in one, below 2 MB, nothing fetched.

Charts are drawn by Vega-Lite, which vl-convert-python brings as one script. It is optional: without
it, or where a page has no chart, the page has its tables.

Names come from strangers' files. The template escapes all texts; data for charts is JSON in which
no ``<`` is left; the page's policy runs the scripts that were written here, by their digests, and
loads nothing; expressions of charts are interpreted, never compiled.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from pydantic_core import to_json

from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.report.page.blocks import Chart, Page

PAGE_NAME = "report.html"

_MARK = '<meta name="generator" content="compress-onnx">'
_HEAD_BYTES = 2000
_PACKAGE = "compress_onnx.pipeline.report.page"


def write_page(path: Path, page: Page, *, pictures: bool = True) -> None:
    """Write ``page`` as one file.

    Args:
        path: of the file.
        page: what it says.
        pictures: whether charts are drawn; their tables are there either way.

    Raises:
        MissingDependencyError: charts are to be drawn, and vl-convert-python is not installed.
        OutputError: ``path`` cannot be written.
    """
    text = rendered(page, pictures=pictures)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rendered(page: Page, *, pictures: bool = True) -> str:
    """The text of the file, as :func:`write_page` writes it."""
    drawn = pictures and any(isinstance(b, Chart) for s in page.shown for b in s.blocks)
    scripts = [*([_vega()] if drawn else []), _own("page.js")]
    return _template().render(
        page=page,
        drawn=drawn,
        mark=Markup(_MARK),  # noqa: S704 - written here
        style=Markup(_own("page.css")),  # noqa: S704 - written here
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - written here, or the library
        digests=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def why_no_charts() -> str | None:
    """Why charts cannot be drawn here, and what to do about it; None where they can."""
    if find_spec("vl_convert") is not None:
        return None
    return 'charts need vl-convert-python: pip install "compress-onnx[pictures]"'


def is_page_of_ours(path: Path) -> bool:
    """Whether :func:`write_page` wrote the file."""
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(_PACKAGE, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"json": _json, "breakable": _breakable}
    environment.tests["chart"] = lambda block: isinstance(block, Chart)
    return environment.get_template("page.html.jinja")


def _json(value: object) -> Markup:
    """JSON that may stand in a script element."""
    text = to_json(value, inf_nan_mode="null").decode()
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no tag can begin in it


def _breakable(name: str) -> Markup:
    """A name that may wrap behind its dots and slashes, and is copied without the breaks."""
    text = str(escape(name))
    for sign in "./_":
        text = text.replace(sign, f"{sign}<wbr>")
    return Markup(text)  # noqa: S704 - escaped above


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _own(name: str) -> str:
    return files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    if (reason := why_no_charts()) is not None:
        raise MissingDependencyError(reason)
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")
