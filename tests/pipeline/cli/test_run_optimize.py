"""``run`` on a recipe that says ``optimize``, and what the command line says instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_models as small

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "held-out.npz"},
    "compression": {"optimize": {"max_drop": 0.5, "objective": "size", "integers": False}},
    "benchmark": None,
}


@pytest.fixture
def recipe(files):
    small.save_rows(files / "held-out.npz", seed=2)
    (files / "recipe.yaml").write_text(json.dumps(RECIPE))
    return "recipe.yaml"


def report():
    return json.loads(Path("b/report.json").read_text())


def test_it_prints_the_trials_and_the_verdict(cli, recipe):
    printed = cli("run", recipe, "-o", "b")
    found = report()["optimize"]
    assert found["max_drop"] == 0.5
    assert "dynamic int8" in printed.out
    assert " ".join(found["verdict"].split()[:6]) in " ".join(printed.out.split())
    assert "4-bit weights" in printed.err


def test_max_drop_is_another_drop_of_optimize(cli, recipe):
    cli("run", recipe, "-o", "b", "--max-drop", "0.25")
    assert report()["optimize"]["max_drop"] == 0.25


@pytest.mark.parametrize(
    "options", [("--params", "0.6"), ("-m", "svd"), ("--store", "float16"), ("--bytes", "0.5")]
)
def test_a_method_or_a_budget_is_taken_instead(cli, recipe, options):
    cli("run", recipe, "-o", "b", *options)
    assert report()["optimize"] is None
    assert report()["plan"]["sites"]
