"""Pictures are optional: where matplotlib is missing, one line says so and nothing is written."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_factory import translation_report
from report_factory import make_report, make_spectra

import compress_onnx.pipeline.report
from compress_onnx.graph_passes.errors import MissingDependencyError
from compress_onnx.pipeline.report import read_report, require_pictures, write_report
from compress_onnx.pipeline.report.drawing import new_figure, save_figure, styled
from compress_onnx.pipeline.report.writer import write_sweep
from compress_onnx.pipeline.results import SweepReport

REPORT_ROOM = Path(compress_onnx.pipeline.report.__file__).parent


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def sweep() -> SweepReport:
    run = make_report()
    return SweepReport(
        tool_version="0", created="now", name="tiny", environment=run.environment, rows=()
    )


@pytest.mark.usefixtures("no_matplotlib")
@pytest.mark.parametrize(
    "draw",
    [
        lambda _: require_pictures(),
        lambda folder: write_report(make_report(), folder, make_spectra()),
        lambda folder: write_sweep(sweep(), folder),
    ],
    ids=["asked", "run", "sweep"],
)
def test_one_line_says_how_to_get_pictures(tmp_path: Path, draw: Callable[[Path], None]) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install .compress-onnx\[pictures\]"):
        draw(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_matplotlib")
def test_a_report_can_do_without_pictures(tmp_path: Path) -> None:
    write_report(make_report(), tmp_path, pictures=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        "report.json",
        "summary.md",
    }
    assert "## Pictures" not in (tmp_path / "summary.md").read_text()


@pytest.mark.usefixtures("no_matplotlib")
def test_both_kinds_of_report_go_through_one_writer(tmp_path: Path) -> None:
    report = translation_report()
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
    assert "BLEU, mean over languages" in (tmp_path / "summary.md").read_text()


def imports(path: Path) -> Iterator[str]:
    """The modules that ``path`` imports when it runs, not only for the type checker."""
    for node in running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from running(child)


def test_one_module_imports_matplotlib() -> None:
    importing = [
        path.name
        for path in REPORT_ROOM.parent.rglob("*.py")
        if any(name.partition(".")[0] == "matplotlib" for name in imports(path))
    ]
    assert importing == ["drawing.py"]


def test_the_callers_style_comes_back(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = mpl.rcParams["savefig.dpi"]
    with styled():
        assert mpl.rcParams["savefig.dpi"] != before
        save_figure(new_figure(1, 1), tmp_path / "empty.png")
    assert mpl.rcParams["savefig.dpi"] == before
