"""Model cards: what the hub's own library reads in them, and that names stay text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import onnx
import pytest
from packages import encoder_model, encoder_package, perceptron_package
from report_factory import make_plan, make_report, make_site

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.planning.plan import LayerPlan
from compress_onnx.pipeline.deploy.package import read_package
from compress_onnx.pipeline.deploy.targets import TARGETS, bundle
from compress_onnx.pipeline.files.bundle import verify_manifest
from compress_onnx.pipeline.results import ExportReport, RunReport

hub = pytest.importorskip("huggingface_hub", reason="needs the export extra")
pytest.importorskip("cyclonedx", reason="needs the deploy extra")

CARDS = [name for name, target in TARGETS.items() if target.library is not None]
THEIRS = "---\nlicense: apache-2.0\nlanguage: [en, sw]\ntags: [theirs]\n---\n# Their words\n"


def card_of(tmp_path: Path, report: RunReport | None, target="sentence-transformers", **options):
    """The card as text, and as the hub's library reads it."""
    folder = encoder_package(tmp_path / "package")
    if report is not None:
        (folder / "report.json").write_text(report.model_dump_json())
    bundle(read_package(folder, "tiny", **options), target, tmp_path / "out")
    verify_manifest(tmp_path / "out")
    path = tmp_path / "out" / "README.md"
    return path.read_text(encoding="utf-8"), hub.ModelCard.load(path)


def bundled(folder: Path, out: Path):
    """The card of the package as it lies there."""
    bundle(read_package(folder, "tiny"), "tei", out)
    return hub.ModelCard.load(out / "README.md")


def from_hub(**changes) -> ExportReport:
    values = {"source": "org/encoder", "exporter": "dynamo", "opset": 23, "hub_id": "org/encoder"}
    return ExportReport(**values | changes)


def domain(**changes):
    validation = make_report().validation
    return validation.model_copy(update={"samples": 7, "origin": "package descriptions", **changes})


def test_targets_of_the_hub_have_a_card():
    assert {"sentence-transformers", "tei", "fastembed", "transformers-js", "optimum"} == set(CARDS)


@pytest.mark.parametrize("target", CARDS)
def test_the_hub_reads_the_figures(tmp_path, target):
    report = make_report(export=from_hub())
    validation = report.validation.model_copy(
        update={"domains": {"packages": domain(metrics={"cosine": 0.75})}}
    )
    text, card = card_of(tmp_path, report.model_copy(update={"validation": validation}), target)
    data = card.data
    assert data.base_model == "org/encoder"
    assert data.library_name == TARGETS[target].library.name
    assert {"onnx", "compress-onnx"} <= set(data.tags)
    assert (data.model_name, data.pipeline_tag) == ("tiny", "sentence-similarity")
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    own = report.validation.origin
    assert found[own, "cosine"] == report.validation.metrics["cosine"]
    assert found[own, "accuracy"] == report.validation.metrics["accuracy"]
    assert found["packages: package descriptions", "cosine"] == 0.75
    assert (own, "accuracy_reference") not in found
    assert [one.dataset_args for one in data.eval_results][-1] == {"samples": 7}
    assert "| Parameters | 22,713,216 | 17,405,000 |" in text
    assert "12.3 ms" in text
    assert str(tmp_path) not in text


def test_a_card_survives_the_hubs_own_writer(tmp_path):
    """What ``push_to_hub`` does: the card is read, changed and written again."""
    report = make_report(export=from_hub())
    domains = {"packages": domain(metrics={"cosine": 0.75}), "verses": domain()}
    validation = report.validation.model_copy(update={"domains": domains})
    _, card = card_of(tmp_path, report.model_copy(update={"validation": validation}))
    card.data.license = "mit"
    card.save(tmp_path / "again.md")
    again = hub.ModelCard.load(tmp_path / "again.md")
    assert len({one.dataset_name for one in again.data.eval_results}) == 3
    assert again.data.eval_results == card.data.eval_results
    assert again.text == card.text


def test_what_is_not_known_is_not_said(tmp_path):
    text, card = card_of(tmp_path, None)
    assert card.data.base_model is None
    assert card.data.eval_results is None
    assert "without a report" in text


def test_the_base_model_is_no_local_name(tmp_path):
    """A source that only looks like a hub id is none, and a path stays at home."""
    report = make_report(export=from_hub(source="org/encoder", hub_id=None))
    assert card_of(tmp_path / "a", report)[1].data.base_model is None
    report = make_report(export=from_hub(source="/home/somebody/m.onnx", hub_id=None))
    assert "/home" not in card_of(tmp_path / "b", report)[0]
    given = card_of(tmp_path / "c", report, base_model="org/given")[1]
    assert given.data.base_model == "org/given"
    with pytest.raises(RequestError, match="--base-model"):
        card_of(tmp_path / "d", report, base_model="org/a\n---\n")


def test_quantized_where_layers_hold_integers(tmp_path):
    layer = LayerPlan(layer="l", node="n", numbers="int8", reason="", weight_bytes=1)
    plan = make_plan(sites=(make_site(),))
    report = make_report(export=from_hub(), plan=plan)
    assert "base_model_relation" not in card_of(tmp_path / "a", report)[1].data.to_dict()
    plan = plan.model_copy(update={"layers": (layer,)})
    report = make_report(export=from_hub(), plan=plan)
    data = card_of(tmp_path / "b", report)[1].data.to_dict()
    assert data["base_model_relation"] == "quantized"


def test_figures_that_are_no_numbers_are_left_to_the_text(tmp_path):
    report = make_report()
    broken = domain(metrics={"cosine": math.nan, "accuracy": 0.5})
    text, card = card_of(tmp_path, report.model_copy(update={"validation": broken}))
    assert [one.metric_type for one in card.data.eval_results] == ["accuracy"]
    assert "NaN" in text


HOSTILE = "data\n---\nlicense: evil\n---\n<script>alert(1)</script> | [x](javascript:1) `"


def test_hostile_names_stay_text(tmp_path):
    report = make_report(export=from_hub(source=HOSTILE, hub_id=None))
    validation = domain(origin=HOSTILE, metrics={HOSTILE: 0.5, "cosine": 0.75})
    validation = validation.model_copy(
        update={"domains": {HOSTILE: domain(metrics={"cosine": 0.5}, origin=HOSTILE)}}
    )
    text, card = card_of(tmp_path, report.model_copy(update={"validation": validation}))
    assert card.data.license is None
    assert HOSTILE.replace("\n", " ") in {one.dataset_name for one in card.data.eval_results}
    body = card.text
    assert "<script>" not in body.replace("\\<script>", "")
    assert "[x](" not in body.replace("\\[x](", "")
    assert "\n---\n" not in body
    assert text.count("\n---\n") == 1


def test_somebodys_card_stays_and_so_does_its_licence(tmp_path):
    folder = encoder_package(tmp_path / "package")
    (folder / "README.md").write_text(THEIRS)
    text, card = card_of(tmp_path, None)
    assert (tmp_path / "out" / "README-original.md").read_text() == THEIRS
    assert (card.data.license, card.data.language) == ("apache-2.0", ["en", "sw"])
    assert "theirs" not in card.data.tags
    assert "README-original.md" in text


def test_the_card_of_the_source_is_not_taken_for_one_of_ours(tmp_path):
    """As ``run`` leaves it, under its later name; a README of somebody's is not asked then."""
    folder = encoder_package(tmp_path / "package")
    (folder / "README-original.md").write_text(THEIRS)
    (folder / "README.md").write_text(THEIRS.replace("apache-2.0", "mit"))
    _, card = card_of(tmp_path, None)
    assert (tmp_path / "out" / "README-original.md").read_text() == THEIRS
    assert card.data.license == "apache-2.0"


APACHE = (Path(__file__).parents[3] / "LICENSE").read_text()
TELLERS = {
    "config.json": ("config.json", '{"model_type": "bert", "license": "MIT"}', "mit"),
    "licence": ("LICENSE.txt", APACHE, "apache-2.0"),
}


@pytest.mark.parametrize("teller", TELLERS)
def test_another_file_tells_the_licence(tmp_path, teller):
    file, content, licence = TELLERS[teller]
    folder = encoder_package(tmp_path / "package")
    (folder / "README.md").write_text("# No front matter\n")
    (folder / file).write_text(content)
    card = bundled(folder, tmp_path / "out")
    assert card.data.license == licence
    assert f"Its licence is `{licence}`, as {file} says." in card.text
    assert "not known" not in card.text


def test_the_models_metadata_tell_the_licence(tmp_path):
    model = encoder_model()
    onnx.helper.set_model_props(model, {"license": "CC-BY-4.0"})
    card = bundled(encoder_package(tmp_path / "package", model), tmp_path / "out")
    assert card.data.license == "cc-by-4.0"
    assert "as the model's metadata says" in card.text


def test_the_card_goes_before_other_files(tmp_path):
    folder = encoder_package(tmp_path / "package")
    (folder / "README.md").write_text(THEIRS)
    (folder / "LICENSE").write_text("MIT License\n")
    text, card = card_of(tmp_path, None)
    assert card.data.license == "apache-2.0"
    assert "licence is" not in text


def test_a_licence_that_nobody_tells_is_to_be_asked_for(tmp_path):
    text, card = card_of(tmp_path, make_report(export=from_hub()))
    assert card.data.license is None
    assert "licence is not known" in text
    assert "Ask whoever published `org/encoder`" in text


@pytest.mark.parametrize(
    "theirs",
    ["---\na: [\n---\n", "---\n- 1\n---\n", "---\nlicense: {a: 1}\n---\n", "\xff", "", "-"],
)
def test_somebodys_broken_card_stays_without_harm(tmp_path, theirs):
    folder = encoder_package(tmp_path / "package")
    (folder / "README.md").write_bytes(theirs.encode("latin-1"))
    _, card = card_of(tmp_path, None)
    assert card.data.license is None
    assert (tmp_path / "out" / "README-original.md").read_bytes() == theirs.encode("latin-1")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("BertForSequenceClassification", "text-classification"), ("BertModel", None)],
)
def test_the_task_is_what_the_architecture_is_for(tmp_path, architecture, task):
    folder = perceptron_package(tmp_path / "package")
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "report.json").write_text(make_report().model_dump_json())
    bundle(read_package(folder, "tiny"), "optimum", tmp_path / "out")
    data = hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.pipeline_tag == task
    assert {one.task_type for one in data.eval_results} == {task or "other"}
