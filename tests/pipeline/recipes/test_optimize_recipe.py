"""A recipe whose model is what ``optimize`` finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_models import samples, two_layers

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.compress import choice
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.recipes.sweep import grid, sweep
from compress_onnx.pipeline.report import read_report
from compress_onnx.pipeline.runtime.session import open_session, run

FEATURES, HIDDEN = 32, 128
RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "held-out.npz"},
    "compression": {"optimize": {"max_drop": 0.05, "objective": "size"}},
    "gates": [{"quantity": "relative_l2", "max": 0.1}, {"quantity": "size_ratio", "max": 0.9}],
    "benchmark": {"provider": "cpu", "warmup": 1, "iterations": 5, "batch": 2, "length": 3},
}


@pytest.fixture
def folder(tmp_path):
    """A model half of whose neurons hardly matter, and data."""
    root = tmp_path / "recipe"
    root.mkdir()
    proto, weights = two_layers((FEATURES, HIDDEN, FEATURES))
    weights["second.weight"][::2] *= 1e-3
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    onnx.save(proto, root / "model.onnx")
    np.savez(root / "data.npz", **samples(FEATURES, 150).inputs)
    np.savez(root / "held-out.npz", **samples(FEATURES, 40, seed=7).inputs)
    return root


def carry_out(folder, bundle, cache=None, **changes):
    recipe = Recipe.model_validate(RECIPE | changes)
    return run_recipe(recipe, bundle, base_dir=folder, settings=RunSettings(cache=cache))


def test_the_bundle_holds_the_winner_and_how_it_was_found(folder, tmp_path):
    bundle = tmp_path / "bundle"
    report = carry_out(folder, bundle)
    assert report.passed
    found = report.optimize
    winner = next(trial for trial in found.trials if trial.name == found.winner)
    assert not winner.rival
    assert report.size.candidate_bytes == winner.size_bytes
    assert read_report(bundle) == report
    assert report.plan.thinned
    assert report.notes[-1].startswith("of this plan's model, weights are then held as")
    files = verify_manifest(bundle).files
    assert {"model.onnx", "plan.json", "pareto.json", "pictures/front.png"} <= files.keys()
    points = json.loads((bundle / "pareto.json").read_text())["points"]
    assert [point["name"] for point in points] == [trial.name for trial in found.trials]
    assert {"rival", "ours"} == {point["from"] for point in points}
    assert any(point["on_front"] for point in points)
    summary = (bundle / "summary.md").read_text()
    assert found.verdict in summary.replace("\\", "")
    assert "dynamic int8" in summary


def test_a_grid_of_the_benchmark_is_what_speed_is_chosen_by(folder, tmp_path):
    compression = {"optimize": {"max_drop": 0.05, "time": 1e-9}}
    benchmark = RECIPE["benchmark"] | {"batch": [1, 4]}
    report = carry_out(
        folder, tmp_path / "bundle", compression=compression, benchmark=benchmark, gates=[]
    )
    assert report.optimize.shapes == ("1x3", "4x3")
    assert [row.case for row in report.benchmarks] == ["1x3", "4x3"]
    assert read_report(tmp_path / "bundle") == report
    summary = (tmp_path / "bundle" / "summary.md").read_text()
    assert "| speed-up | at 1x3 | at 4x3 |" in summary


def test_only_the_half_that_chose_nothing_reports(folder, tmp_path):
    report = carry_out(folder, tmp_path / "bundle")
    with np.load(folder / "held-out.npz") as data:
        reporting = data["x"][::2]
    assert report.validation.samples == len(reporting)
    assert "the half that chose nothing" in report.validation.origin
    assert report.depth.origin == report.validation.origin
    assert report.optimize.depth is None
    right, ours = (
        run(open_session(Path(path)), {"x": reporting})["y"]
        for path in (folder / "model.onnx", tmp_path / "bundle" / "model.onnx")
    )
    error = np.linalg.norm(ours - right) / np.linalg.norm(right)
    assert report.validation.outputs[0].relative_l2 == pytest.approx(error, rel=1e-3)
    gates = {gate.quantity: gate.value for gate in report.gates}
    assert gates["relative_l2"] == pytest.approx(error, rel=1e-3)


def test_the_form_is_chosen_by_retrieval_where_that_is_the_metric(folder, tmp_path):
    """Topics are where the pooled output of the original is largest; a damaged model fails."""
    (held_out,) = samples(FEATURES, 200, seed=7).inputs.values()
    outputs = run(open_session(folder / "model.onnx"), {"x": held_out})["y"]
    topics = np.array([f"topic {n}" for n in outputs.mean(axis=1)[:, 1::2].argmax(axis=1) % 4])
    np.savez(folder / "topics.npz", x=held_out, topics=topics)
    gates = [{"quantity": "ndcg_drop", "max": 0.05}, {"quantity": "recall_drop", "max": 0.05}]
    changes = {
        "validation": {"kind": "npz", "path": "topics.npz", "labels": "topics"},
        "metric": {"kind": "retrieval"},
        "gates": gates,
    }
    cache = ArrayCache(tmp_path / "cache")
    report = carry_out(folder, tmp_path / "bundle", cache, **changes)
    assert report.passed
    assert {trial.drop.quantity for trial in report.optimize.trials if trial.drop} == {"ndcg_drop"}
    metrics = report.validation.metrics
    assert metrics["ndcg_drop"] == pytest.approx(metrics["ndcg_reference"] - metrics["ndcg"])
    assert read_report(tmp_path / "bundle") == report
    assert "ndcg_drop" in (tmp_path / "bundle" / "summary.md").read_text()
    small = {"method": {"name": "svd"}, "params": 0.05}
    damaged = carry_out(folder, tmp_path / "damaged", compression=small, **changes)
    assert not damaged.passed
    assert damaged.validation.metrics["ndcg_drop_low"] > 0


def test_a_winner_without_a_plan_has_none(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "LEAST_GAIN", 1e9)
    report = carry_out(folder, tmp_path / "bundle")
    assert next(t for t in report.optimize.trials if t.name == report.optimize.winner).rival
    assert report.plan is None
    assert not (tmp_path / "bundle" / "plan.json").exists()
    assert read_report(tmp_path / "bundle") == report
    assert "## Sites" not in (tmp_path / "bundle" / "summary.md").read_text()
    verify_manifest(tmp_path / "bundle")


def test_a_second_run_finds_its_trials_in_the_cache(folder, tmp_path):
    cache = ArrayCache(tmp_path / "cache")
    first = carry_out(folder, tmp_path / "bundle", cache)
    (log,) = (tmp_path / "cache").glob("*.jsonl")
    lines = log.read_text().splitlines()
    assert len(lines) > 4
    again = carry_out(folder, tmp_path / "bundle", cache)
    assert log.read_text().splitlines() == lines
    assert again.optimize.winner == first.optimize.winner
    log.write_text("damaged")
    carry_out(folder, tmp_path / "bundle", cache)
    assert len(log.read_text().splitlines()) == len(lines)
    cache.clear()
    assert not log.exists()


def test_recovery_trains_candidates_on_data_of_its_own(folder, tmp_path):
    np.savez(folder / "lessons.npz", **samples(FEATURES, 320, seed=3).inputs)
    lessons = {"kind": "npz", "path": "lessons.npz"}
    recovery = {"data": lessons, "budget": None, "steps": 20}
    report = carry_out(folder, tmp_path / "bundle", recovery=recovery)
    trained = [t for t in report.optimize.trials if t.name.endswith("recovered for 20 steps")]
    assert trained
    assert all(trial.drop is not None for trial in trained)
    assert report.recovery is None  # the winner is not trained a second time


def test_a_sweep_varies_what_there_is_without_optimize(folder):
    recipe = Recipe.model_validate(RECIPE | {"benchmark": None})
    variants = grid(recipe.compression.plain, [], {"params": [0.5]}, [])
    (row,) = sweep(recipe, variants, base_dir=folder).rows
    assert row.problem is None
    assert row.parameters_after <= 0.5 * row.parameters_before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_drop": 0.1}, "max_drop is one of optimize"),
        ({"calibration": None}, "add calibration"),
        ({"validation": None, "gates": []}, "and validation to measure on"),
    ],
)
def test_what_contradicts_optimize_is_refused_at_once(folder, tmp_path, changes, message):
    with pytest.raises(RequestError, match=message):
        carry_out(folder, tmp_path / "bundle", **changes)
    assert not (tmp_path / "bundle").exists()
