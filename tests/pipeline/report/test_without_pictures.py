"""Without matplotlib: what only makes pictures refuses early, a run goes without and says so."""

from __future__ import annotations

import pytest
import small_models as small
from cli_runner import Cli, error_line
from report_factory import make_report

from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.report import drawing, write_report


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setattr(drawing, "find_spec", lambda _: None)


@pytest.mark.parametrize("command", ["sweep", "analyze"])
def test_what_makes_pictures_refuses_before_it_reads_anything(
    tmp_path, capsys, monkeypatch, no_matplotlib, command
):
    cli = Cli(capsys, monkeypatch)
    line = error_line(cli(command, tmp_path / "none.yaml", "-o", tmp_path / "out", code=2))
    assert 'pip install "compress-onnx[pictures]"' in line
    assert not (tmp_path / "out").exists()
    assert "none.yaml" in error_line(cli(command, tmp_path / "none.yaml", code=2))


def test_a_report_is_written_without(tmp_path, no_matplotlib):
    write_report(make_report(), tmp_path, pictures=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
        "summary.md",
    ]
    assert ".png" not in (tmp_path / "summary.md").read_text()
    assert "compress-onnx[pictures]" in drawing.why_no_pictures()


def test_a_run_goes_without_and_says_so(tmp_path, no_matplotlib):
    small.save(small.perceptron(), tmp_path / "model.onnx")
    recipe = Recipe.model_validate(
        {"name": "x", "source": {"model": "model.onnx"}, "benchmark": None}
    )
    report = run_recipe(recipe, tmp_path / "bundle", base_dir=tmp_path)
    assert any("compress-onnx[pictures]" in note for note in report.notes)
    assert not (tmp_path / "bundle" / "pictures").exists()
