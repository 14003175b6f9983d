"""The table of rivals: every row is there, and a model that is damaged shows in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from studies.performance import __main__ as study
from studies.performance import rows as made
from studies.performance.rows import DYNAMIC, ORIGINAL
from studies.performance.subject import Subject, material_of
from studies.performance.table import Line, absent, ratios, render, speeds_of
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.rivals import RIVALS

FEATURES = 32


@pytest.fixture
def subject(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SIZES", ((1, 2), (2, 3)))
    path = saved(tmp_path, two_layers((FEATURES, 64, FEATURES))[0])
    learned = learn(path, samples(FEATURES, 100))
    return Subject(material_of(learned), samples(FEATURES, 20, seed=3), None)


def table(subject, tmp_path) -> dict[str, list[str]]:
    folder = tmp_path / "built"
    folder.mkdir()
    lines = list(study.table(subject, folder, rounds=3))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in cells}


def test_every_rival_stands_beside_ours(subject, tmp_path):
    found = table(subject, tmp_path)
    ours = {"integers", "50% of the neurons, integers"}
    assert {ORIGINAL, "static QDQ", *RIVALS, *ours} <= found.keys()
    assert found[ORIGINAL][0] == "1.0000"
    assert all(float(row[0]) > 0.8 for row in found.values())
    assert all(len(row) == 7 for row in found.values())
    assert found[ORIGINAL][3] == "1.00 [1.00, 1.00]"
    assert found[DYNAMIC][5] == "1.00 [1.00, 1.00]"


def test_a_damaged_model_shows(subject, tmp_path, monkeypatch):
    damaged = two_layers((FEATURES, 64, FEATURES), seed=1)[0].SerializeToString()

    def break_(_model: Path, output: Path) -> None:
        output.write_bytes(damaged)

    monkeypatch.setattr(made, "RIVALS", {"broken": break_})
    assert float(table(subject, tmp_path)["broken"][0]) < 0.5


def test_a_model_that_cannot_be_made_says_why(subject, tmp_path, monkeypatch):
    def refuse(_model: Path, _output: Path) -> None:
        raise ModelFileError("it has no weights")

    monkeypatch.setattr(made, "RIVALS", {"refused": refuse})
    found = table(subject, tmp_path)
    (name,) = [name for name in found if name.startswith("refused")]
    assert name == "refused: not measured, it has no weights"
    assert set(found[name]) == {"–"}
    assert "integers" in found


def test_speeds_are_over_each_base():
    times = np.tile([8.0, 4.0, 2.0], (10, 1))
    found = {(name, base): text for name, base, text in ratios(times, [ORIGINAL, DYNAMIC, "x"])}
    assert found["x", ORIGINAL] == "4.00 [4.00, 4.00]"
    assert found["x", DYNAMIC] == "2.00 [2.00, 2.00]"
    assert found[ORIGINAL, DYNAMIC] == "0.50 [0.50, 0.50]"


def test_a_base_that_is_not_there_has_no_speeds():
    found = speeds_of({"1×16": np.tile([8.0, 4.0], (10, 1))}, [ORIGINAL, "x"])
    assert found["x"] == {(ORIGINAL, "1×16"): "2.00 [2.00, 2.00]"}


def test_the_text_of_a_table():
    lines = [
        Line("a", {"file": "1 MB"}, {(ORIGINAL, "1×16"): "2", (DYNAMIC, "1×16"): "1"}),
        absent("b", "pip said | no"),
    ]
    assert list(render(lines, ["file"], ["1×16"])) == [
        "|  | file | 1×16 | 1×16, over dynamic int8 |",
        "|:---|---:|---:|---:|",
        "| a | 1 MB | 2 | 1 |",
        "| b: not measured, pip said / no | – | – | – |",
    ]
