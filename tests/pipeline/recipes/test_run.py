"""A whole run over a tiny ONNX model: what the bundle holds, and what happens to an old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small

from compress_onnx.graph_passes.errors import (
    CompressOnnxError,
    DataError,
    ModelFileError,
    NothingToCompressError,
    OutputError,
    RequestError,
)
from compress_onnx.graph_passes.planning.plan import read_plan
from compress_onnx.pipeline.divergence import depth
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.files.cache import ArrayCache
from compress_onnx.pipeline.recipe import Recipe
from compress_onnx.pipeline.recipes.run import run_recipe
from compress_onnx.pipeline.report import read_report
from compress_onnx.pipeline.runtime.session import EXECUTION_PROVIDERS

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "held-out.npz"},
    "compression": {"params": 0.5},
    "gates": [{"quantity": "relative_l2", "max": 0.5}, {"quantity": "size_ratio", "max": 0.9}],
    "benchmark": None,
}
CLASSIFIER = RECIPE | {
    "validation": {"kind": "npz", "path": "labelled.npz", "labels": "labels"},
    "metric": {"kind": "accuracy", "output": "y"},
    "gates": [{"quantity": "accuracy", "min": 0.0}, {"quantity": "accuracy_drop", "max": 1.0}],
}


def prepare(root):
    """A recipe's folder: the model, data to calibrate on, data to validate on."""
    root.mkdir()
    small.save(small.perceptron(), root / "model.onnx")
    small.save_rows(root / "data.npz", seed=1)
    small.save_rows(root / "held-out.npz", seed=2)
    with np.load(root / "held-out.npz") as rows:
        labels = np.arange(len(rows["x"])) % small.CLASSES
        np.savez(root / "labelled.npz", x=rows["x"], labels=labels)
    return root


@pytest.fixture
def folder(tmp_path):
    return prepare(tmp_path / "recipe")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The report and the bundle of one run; only to be looked at."""
    root = tmp_path_factory.mktemp("finished")
    return carry_out(prepare(root / "recipe"), root / "bundle"), root / "bundle"


@pytest.fixture
def bundle(tmp_path):
    return tmp_path / "bundle"


def carry_out(folder, bundle, recipe=RECIPE, cache=None, **changes):
    validated = Recipe.model_validate(recipe | changes)
    return run_recipe(
        validated, bundle, base_dir=folder, command="as a test", settings=RunSettings(cache=cache)
    )


def test_the_bundle_holds_everything_and_verifies(finished):
    report, bundle = finished
    assert report.passed
    files = verify_manifest(bundle).files
    assert {"model.onnx", "plan.json", "report.json", "summary.md"} <= files.keys()
    assert any(name.startswith("pictures/") and name.endswith(".png") for name in files)
    assert read_report(bundle) == report
    assert read_plan(bundle / "plan.json") == report.plan
    assert files["model.onnx"].bytes == report.size.candidate_bytes
    onnx.checker.check_model(bundle / "model.onnx", full_check=True)


INVARIANCE = {"quantity": "batch_invariance", "min": 0.9999}


def test_batch_invariance_is_measured_for_its_gate(folder, bundle, finished):
    assert finished[0].validation.batch_invariance is None
    report = carry_out(folder, bundle, gates=[INVARIANCE])
    assert report.passed
    assert report.validation.batch_invariance > 0.9999
    assert "batch_invariance" in (bundle / "summary.md").read_text()


def test_a_gate_on_what_a_fixed_batch_cannot_show_fails_with_the_reason(folder, bundle):
    model = onnx.load(folder / "model.onnx")
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, folder / "model.onnx")
    report = carry_out(folder, bundle, gates=[INVARIANCE])
    (gate,) = report.gates
    assert (gate.value, gate.passed) == (None, False)
    assert "the graph fixes its batch at 4" in gate.reason
    summary = (bundle / "summary.md").read_text()
    assert summary.startswith("# FAILED: ")
    assert "the graph fixes its batch at 4" in summary.splitlines()[0]


def test_accuracy_is_measured_on_the_providers_of_the_benchmark(folder, bundle):
    gates = [{"quantity": "relative_l2.cpu", "max": 0.5}]
    timed = {"provider": "auto", "iterations": 5, "warmup": 0}
    report = carry_out(folder, bundle, gates=gates, benchmark=timed)
    assert report.passed
    measured = {report.validation.provider, *(v.provider for v in report.validation.elsewhere)}
    assert measured == {benchmark.provider for benchmark in report.benchmarks}
    assert measured | report.unmeasured.keys() == set(EXECUTION_PROVIDERS)


def test_a_recipe_may_ask_for_a_grid(folder, bundle):
    gates = [{"quantity": f"speedup.cpu{case}", "min": 0} for case in ("", ".1x128", ".3x128")]
    timed = {"provider": "cpu", "batch": [1, 3], "iterations": 5, "warmup": 0}
    report = carry_out(folder, bundle, gates=gates, benchmark=timed)
    assert [row.name for row in report.benchmarks] == ["cpu.1x128", "cpu.3x128"]
    assert [row.input_shapes["x"][0] for row in report.benchmarks] == [1, 3]
    worst, *cases = [gate.value for gate in report.gates]
    assert worst == min(cases)
    summary = (bundle / "summary.md").read_text()
    assert all(f"| Latency p50, {row.name} |" in summary for row in report.benchmarks)


def test_the_report_says_what_was_done(finished):
    report, _ = finished
    assert (report.name, report.command, report.seed) == ("tiny", "as a test", 0)
    assert report.calibration == "40 samples of npz file data.npz"
    assert report.validation is not None
    assert report.validation.origin == "npz file held-out.npz"
    assert [site.site for site in report.plan.sites] == list(small.SITES)
    assert (report.plan.allocation, report.plan.sequential) == ("gauss-newton", True)
    saved = report.size.reference_parameters - report.size.candidate_parameters
    assert saved == -report.plan.file_parameters_added > 0
    for site in report.plan.factored:
        assert site.error is not None
        assert site.error.bound * 0.999 <= site.error.reached < 1
    assert report.op_counts["candidate"] != report.op_counts["reference"]
    assert {"export", "calibrate", "compress", "validate"} <= report.timings_s.keys()
    assert [gate.passed for gate in report.gates] == [True, True]


def test_the_report_has_the_errors_along_the_depth(finished, folder, bundle):
    report, _ = finished
    profile = report.depth
    assert (profile.samples, profile.origin) == (8, report.validation.origin)
    assert [one.tensor for one in profile.values] == ["a1", "r1", "a2", "y"]
    assert "depth profile" in report.timings_s
    document = json.loads((finished[1] / "report.json").read_text())
    assert len(document["depth"]["values"]) == 4
    assert "Along the depth" in (finished[1] / "report.html").read_text()
    damaged = carry_out(folder, bundle, compression={"method": {"name": "svd"}, "params": 0.1})
    for good, bad in zip(profile.values, damaged.depth.values, strict=True):
        assert bad.error > 3 * good.error > 0


def test_what_is_too_large_for_a_profile_is_noted(folder, bundle, monkeypatch):
    monkeypatch.setattr(depth, "MOST_BYTES", 100_000)
    report = carry_out(folder, bundle)
    assert report.passed
    assert "GB of memory" in report.depth.unmeasured
    assert f"no depth profile: {report.depth.unmeasured}" in report.notes
    assert read_report(bundle) == report
    assert report.depth.unmeasured in (bundle / "report.html").read_text()


SHIFTED = {"shifted": {"kind": "npz", "path": "shifted.npz"}}


def save_subspace(path, directions, seed):
    """Inputs ``[40, 48]`` that lie in the span of ``directions`` ``[4, 48]``."""
    rows = 30 * np.random.default_rng(seed).normal(size=(40, len(directions))) @ directions
    np.savez(path, x=rows.astype(np.float32))


def test_a_domain_that_calibration_never_saw_fails_its_gate_alone(folder, bundle):
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(small.FEATURES, 8)))[0].T
    save_subspace(folder / "data.npz", directions[:4], seed=1)
    save_subspace(folder / "held-out.npz", directions[:4], seed=2)
    save_subspace(folder / "shifted.npz", directions[4:], seed=3)
    names = ("relative_l2", "relative_l2.shifted", "relative_l2.worst")
    report = carry_out(
        folder,
        bundle,
        compression={"method": {"name": "asvd"}, "rank": 4, "select": {"include": ["*.fc1"]}},
        domains=SHIFTED,
        gates=[{"quantity": name, "max": 0.1} for name in names],
    )
    assert [gate.passed for gate in report.gates] == [True, False, False]
    main, shifted, worst = (gate.value for gate in report.gates)
    assert main < 0.1 < shifted == worst
    assert report.validation.domains["shifted"].origin == "npz file shifted.npz"
    assert report.validation.worst["relative_l2"] == worst
    assert read_report(bundle) == report
    summary = (bundle / "summary.md").read_text()
    assert summary.startswith("# FAILED: relative_l2.shifted is ")
    assert "| Figure | `validation` | `shifted` | `worst` |\n|:---|---:|---:|---:|\n" in summary
    assert "- `shifted`: 40 samples of npz file shifted.npz\n" in summary


def test_domains_decide_nothing(folder, bundle, tmp_path):
    small.save_rows(folder / "shifted.npz", seed=3)
    found = [
        carry_out(folder, tmp_path / str(number), max_drop=0.3, gates=[], domains=domains)
        for number, domains in enumerate(({}, SHIFTED))
    ]
    alone, beside = (report.search.model_dump() for report in found)
    assert alone == beside
    assert set(found[1].validation.domains) == {"shifted"}


def test_a_domain_without_labels_is_named(folder, bundle):
    small.save_rows(folder / "shifted.npz", seed=3)
    with pytest.raises(DataError, match=r"needs labels .* the recipe's domain shifted"):
        carry_out(folder, bundle, CLASSIFIER, domains=SHIFTED)
    assert not bundle.exists()


def test_recovery_is_part_of_the_run(folder, bundle, tmp_path):
    weights_alone = {"method": {"name": "svd"}, "params": 0.5}
    plain = carry_out(folder, tmp_path / "plain", compression=weights_alone)
    settings = {"budget": None, "steps": 60}
    report = carry_out(folder, bundle, compression=weights_alone, recovery=settings)
    assert plain.recovery is None
    assert report.recovery is not None
    assert report.recovery.improved
    assert report.recovery.steps == 60
    assert "recover" in report.timings_s
    assert report.validation is not None
    assert plain.validation is not None
    errors = [run.validation.outputs[0].relative_l2 for run in (plain, report)]
    assert errors[1] < errors[0]
    verify_manifest(bundle)


def test_recovery_trains_on_data_of_its_own(folder, bundle):
    small.save_rows(folder / "lessons.npz", count=320, seed=3)
    lessons = {"kind": "npz", "path": "lessons.npz"}
    settings = {"budget": None, "steps": 2, "data": lessons}
    report = carry_out(folder, bundle, batch_size=8, recovery=settings)
    assert report.recovery is not None
    assert report.recovery.batches + report.recovery.held_out_batches == 320 / 8
    assert report.calibration == "40 samples of npz file data.npz"


def test_recovery_stops_by_data_of_its_own(folder, bundle):
    small.save_rows(folder / "other.npz", count=24, seed=3)
    other = {"kind": "npz", "path": "other.npz"}
    settings = {"budget": None, "steps": 2, "held_out": other}
    report = carry_out(folder, bundle, batch_size=8, recovery=settings)
    assert report.recovery is not None
    assert (report.recovery.batches, report.recovery.held_out_batches) == (10, 3)
    for place in ({"validation": other}, {"domains": {"other": other}}):
        with pytest.raises(ValueError, match="cannot report"):
            Recipe.model_validate(RECIPE | {"recovery": settings} | place)


def test_recovery_needs_data(folder, bundle):
    with pytest.raises(RequestError, match="add calibration"):
        carry_out(folder, bundle, recovery={"budget": "1min"}, calibration=None)
    assert not bundle.exists()


def test_a_benchmark_is_part_of_the_run(folder, bundle):
    settings = {"provider": "cpu", "iterations": 5, "warmup": 1, "batch": 3}
    report = carry_out(folder, bundle, benchmark=settings)
    (benchmark,) = report.benchmarks
    assert (benchmark.provider, benchmark.reference.iterations) == ("cpu", 5)
    assert benchmark.input_shapes == {"x": (3, small.FEATURES)}


def test_labelled_data_gives_accuracy(folder, bundle):
    report = carry_out(folder, bundle, CLASSIFIER)
    assert report.passed
    assert report.validation is not None
    assert 0 <= report.validation.metrics["accuracy"] <= 1


def test_without_data_the_run_still_reports(folder, bundle):
    report = carry_out(folder, bundle, calibration=None, validation=None, gates=[])
    assert (report.calibration, report.validation, report.depth) == (None, None, None)
    assert {site.method.name for site in report.plan.factored if site.method} == {"svd"}
    assert verify_manifest(bundle)


def test_a_failed_gate_leaves_the_bundle_with_its_verdict(folder, bundle):
    gates = [{"quantity": "relative_l2", "max": 0.0}, {"quantity": "max_abs", "max": 0}]
    report = carry_out(folder, bundle, gates=gates)
    assert not report.passed
    assert [gate.passed for gate in report.gates] == [False, False]
    assert report.gates[1].value > 0
    assert verify_manifest(bundle)
    assert not read_report(bundle).passed
    assert "relative_l2" in (bundle / "summary.md").read_text()


def test_a_second_run_replaces_the_first(finished, folder, bundle):
    first, _ = finished
    shutil.copytree(finished[1], bundle)
    before = small.listing(folder)
    (bundle / "model.onnx").write_bytes(b"damaged")
    second = carry_out(folder, bundle, compression={"params": 0.3})
    assert second.size.candidate_bytes < first.size.candidate_bytes
    assert read_report(bundle) == second
    assert verify_manifest(bundle)
    assert small.listing(folder) == before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_a_run_from_the_cache_gives_the_same_model(finished, folder, bundle, tmp_path):
    cache = ArrayCache(tmp_path / "cache")
    carry_out(folder, bundle, cache=cache)
    entries = sorted((tmp_path / "cache").iterdir())
    assert len(entries) == 2  # activations and gradients
    first = (finished[1] / "model.onnx").read_bytes()
    written = [entry.stat().st_mtime_ns for entry in entries]
    assert (bundle / "model.onnx").read_bytes() == first
    carry_out(folder, bundle, cache=cache)
    assert (bundle / "model.onnx").read_bytes() == first
    assert [entry.stat().st_mtime_ns for entry in entries] == written
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-500])
    carry_out(folder, bundle, cache=cache)
    assert (bundle / "model.onnx").read_bytes() == first
    assert all(
        entry.stat().st_mtime_ns != before for entry, before in zip(entries, written, strict=True)
    )


def test_a_folder_of_somebody_else_is_never_replaced(folder, bundle):
    bundle.mkdir()
    (bundle / "thesis.txt").write_text("keep me")
    with pytest.raises(OutputError, match="no earlier result of compress-onnx"):
        carry_out(folder, bundle)
    assert small.listing(bundle) == {"thesis.txt": b"keep me"}


FAILURES = {
    "no such model": ({"source": {"model": "missing.onnx"}}, ModelFileError),
    "no such data": ({"validation": {"kind": "npz", "path": "missing.npz"}}, DataError),
    "no such mask": ({"mask": "padding"}, DataError),
    "no labels": ({"metric": {"kind": "accuracy"}}, DataError),
    "nothing to measure on": (
        {"validation": None, "metric": {"kind": "accuracy"}},
        RequestError,
    ),
    "no such method": ({"compression": {"method": {"name": "magic"}}}, RequestError),
    "no gain": ({"compression": {"rank": 999}}, NothingToCompressError),
    "no such output": ({"metric": {"kind": "embedding", "output": "z"}}, RequestError),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_run_that_fails_leaves_nothing_or_the_old_bundle(finished, folder, bundle, case):
    changes, error = FAILURES[case]
    with pytest.raises(error):
        carry_out(folder, bundle, **changes)
    assert [path.name for path in bundle.parent.iterdir()] == [folder.name]
    shutil.copytree(finished[1], bundle)
    before = small.listing(bundle)
    with pytest.raises(CompressOnnxError):
        carry_out(folder, bundle, **changes)
    assert small.listing(bundle) == before


def test_the_report_is_readable_json(finished):
    document = json.loads((finished[1] / "report.json").read_text())
    assert document["schema_version"] == 1
    assert document["environment"]
    assert Path(document["export"]["source"]) == Path("model.onnx")
