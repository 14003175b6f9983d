"""The table of rivals: every row is there, and a model that is damaged shows in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import performance
from tiny_models import samples, saved, two_layers

from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.compress.rivals import RIVALS

FEATURES = 32


@pytest.fixture
def subject(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "ROUNDS", 3)
    monkeypatch.setattr(performance, "SIZES", ((1, 2), (2, 3)))
    path = saved(tmp_path, two_layers((FEATURES, 64, FEATURES))[0])
    return performance.Subject(
        learn(path, samples(FEATURES, 100)), samples(FEATURES, 20, seed=3), None
    )


def rows(subject, tmp_path) -> dict[str, list[str]]:
    folder = tmp_path / "built"
    folder.mkdir()
    lines = list(performance.table(subject, folder))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in cells}


def test_every_rival_stands_beside_ours(subject, tmp_path):
    found = rows(subject, tmp_path)
    assert {"original", *RIVALS, "integers", "50% of the neurons, integers"} <= found.keys()
    assert found["original"][0] == "1.0000"
    assert all(float(row[0]) > 0.8 for row in found.values())
    assert all(len(row) == 5 for row in found.values())


def test_a_damaged_model_shows(subject, tmp_path, monkeypatch):
    damaged = two_layers((FEATURES, 64, FEATURES), seed=1)[0].SerializeToString()

    def break_(_model: Path, output: Path) -> None:
        output.write_bytes(damaged)

    monkeypatch.setattr(performance, "RIVALS", {"broken": break_})
    assert float(rows(subject, tmp_path)["broken"][0]) < 0.5
