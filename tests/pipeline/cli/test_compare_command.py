"""``compare`` and ``check``, and what continuous integration is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_models as small
from cli_runner import error_line
from defusedxml import ElementTree

RECIPE = {
    "name": "tiny",
    "source": {"model": "model.onnx"},
    "calibration": {"kind": "npz", "path": "data.npz"},
    "validation": {"kind": "npz", "path": "labelled.npz", "labels": "labels"},
    "metric": {"kind": "accuracy", "output": "y"},
    "compression": {"params": 0.5},
    "gates": [{"quantity": "relative_l2", "max": 0.9}, {"quantity": "size_ratio", "max": 0.1}],
    "benchmark": None,
}


@pytest.fixture
def bundle(files, cli):
    """``bundle/``, whose second gate failed; its labels are the original's own answers."""
    import onnxruntime as ort

    small.save_rows(files / "held-out.npz", 300, seed=2)
    x = np.load(files / "held-out.npz")["x"]
    labels = ort.InferenceSession(files / "model.onnx").run(None, {"x": x})[0].argmax(1)
    np.savez(files / "labelled.npz", x=x, labels=labels)
    (files / "recipe.yaml").write_text(json.dumps(RECIPE))
    cli("run", "recipe.yaml", "-o", "bundle", "--junit", "run.xml", code=1)
    return files / "bundle"


def edited(bundle: Path, path: str, change) -> Path:
    """A copy of the report with ``change`` made to its ``validation``."""
    report = json.loads((bundle / "report.json").read_text())
    change(report["validation"])
    Path(path).write_text(json.dumps(report))
    return Path(path)


def test_run_writes_its_gates_as_junit(bundle):
    suite = ElementTree.parse("run.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    held, failed = suite
    assert held.find("failure") is None
    assert "size_ratio ≤ 0.1" in failed.find("failure").get("message")


def test_a_report_is_no_worse_than_itself(bundle, cli):
    text = cli("compare", "bundle", "bundle/report.json").out
    assert "worse" not in text.replace("better is", "")


def test_what_is_worse_beyond_noise_fails(bundle, cli):
    def damage(validation):
        right = np.array(validation["per_sample"]["right"])
        right[:60] = 0
        validation["per_sample"]["right"] = right.tolist()
        validation["metrics"]["accuracy"] = right.mean()

    edited(bundle, "worse.json", damage)
    text = cli("compare", "bundle", "worse.json", "--markdown", "t.md", code=1).out
    assert "McNemar" in text
    cli("compare", "bundle", "worse.json", "--html", "page.html", code=1)
    page = Path("page.html").read_text()
    assert "became worse: accuracy" in page
    assert "Errors along the depth" in page
    table = Path("t.md").read_text()
    assert "| `accuracy` |" in table
    assert "**worse**" in table


def test_a_difference_of_chance_does_not(bundle, cli):
    def damage(validation):
        right = np.array(validation["per_sample"]["right"])
        right[np.flatnonzero(right)[:3]] = 0
        validation["per_sample"]["right"] = right.tolist()
        validation["metrics"]["accuracy"] = right.mean()

    edited(bundle, "noisy.json", damage)
    cli("compare", "bundle", "noisy.json")
    # The same figure on other samples has only its tolerance.
    edited(bundle, "other.json", lambda v: (damage(v), v.update(digest="another")))
    assert "samples are not the same" in cli("compare", "bundle", "other.json", code=1).out


def test_other_errors_have_a_tolerance(bundle, cli):
    def grow(validation):
        validation["outputs"][0]["relative_l2"] *= 1.2

    edited(bundle, "grown.json", grow)
    cli("compare", "bundle", "grown.json", code=1)
    cli("compare", "bundle", "grown.json", "--tolerance", "relative_l2=0.3")
    assert "better" in cli("compare", "grown.json", "bundle").out.replace("better is", "")


def test_what_is_not_measured_any_more_is_worse(bundle, cli):
    edited(bundle, "silent.json", lambda v: v["metrics"].clear())
    text = cli("compare", "bundle", "silent.json", code=1).out
    assert "not measured any more" in text


def test_the_baseline_is_replaced_when_asked(bundle, cli):
    def grow(validation):
        validation["outputs"][0]["relative_l2"] *= 1.2

    edited(bundle, "grown.json", grow)
    Path("baseline.json").write_bytes((bundle / "report.json").read_bytes())
    cli("compare", "baseline.json", "grown.json", "--update-baseline")
    cli("compare", "baseline.json", "grown.json")
    assert json.loads(Path("baseline.json").read_text()) == json.loads(
        Path("grown.json").read_text()
    )


def test_the_first_baseline_has_nothing_to_be_compared_with(bundle, cli):
    assert (
        "baselines/tiny.json"
        in cli("compare", "baselines/tiny.json", "bundle", "--update-baseline").out
    )
    cli("compare", "baselines/tiny.json", "bundle")
    Path("file").write_text("")
    assert "file" in error_line(
        cli("compare", "file/tiny.json", "bundle", "--update-baseline", code=2)
    )


def test_on_github(bundle, cli, monkeypatch, files):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(files / "summary.txt"))
    edited(bundle, "grown.json", lambda v: v["outputs"][0].update(relative_l2=5.0))
    text = cli("compare", "bundle", "grown.json", "--junit", "c.xml", code=1).out
    assert "::error title=compress-onnx::relative_l2: " in text
    assert "became worse" in (files / "summary.txt").read_text()
    failures = ElementTree.parse("c.xml").getroot().iter("failure")
    assert any("relative_l2" in failure.get("message") for failure in failures)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bundle", "nowhere.json"), "cannot read"),
        (("bundle", "recipe.yaml"), "no report.json"),
        (("bundle", "bundle", "--tolerance", "cosine"), "a share"),
        (("bundle", "bundle", "--tolerance", "cosin=0.1"), "no such quantity"),
        (("bundle", "bundle", "--junit", "model.onnx"), "model.onnx"),
    ],
)
def test_bad_requests(bundle, cli, arguments, told):
    assert told in error_line(cli("compare", *arguments, code=2))


def test_check_reads_recipes_and_manifests(bundle, cli):
    assert cli("check", "recipe.yaml", "bundle", "bundle/manifest.json").out.count("fine") == 3
    (bundle / "plan.json").write_text("{}")
    assert "not intact" in error_line(cli("check", "bundle", code=2))
    Path("recipe.yaml").write_text("name: tiny\nsource: {model: x}\nsauce: {}\n")
    assert "sauce" in error_line(cli("check", "recipe.yaml", code=2))
    assert "neither" in error_line(cli("check", "model.onnx", code=2))
