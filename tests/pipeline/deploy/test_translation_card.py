"""The card of a translation model, as the hub's own library reads it."""

from __future__ import annotations

import json
import math

import pytest
from page_factory import translation_report

from compress_onnx.pipeline.deploy.translation_card import write_translation_card
from compress_onnx.pipeline.results import ExportReport, TranslationScores

hub = pytest.importorskip("huggingface_hub", reason="needs the export extra")

THEIRS = "---\nlicense: cc-by-4.0\nlanguage: [en, de]\n---\n# Their words\n"


def scores(**languages):
    by_language = {
        name: {"sentences": sentences, "bleu": bleu, "chrf": chrf}
        for name, (sentences, bleu, chrf) in languages.items()
    }
    mean = {"sentences": 9, "bleu": 1.25, "chrf": 2.5}
    return TranslationScores.model_validate({"languages": by_language, "mean": mean})


def report_with(**changes):
    values = {
        "validation": "pairs of interfaces",
        "reference": scores(de=(4, 31.25, 55.5), fr=(5, 33.5, 57.75)),
        "candidate": scores(de=(4, 28.125, 53.5), fr=(5, 30.75, 56.25)),
    }
    return translation_report().model_copy(update=values | changes)


def card_of(tmp_path, report, **files):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "bundle"
    folder.mkdir()
    checkpoint.mkdir()
    for name, text in {"config.json": "{}", **files}.items():
        (checkpoint / name).write_text(text)
    write_translation_card(report, checkpoint, folder)
    path = folder / "README.md"
    return path.read_text(encoding="utf-8"), hub.ModelCard.load(path)


def test_the_hub_reads_the_figures_of_each_language(tmp_path):
    report = report_with()
    text, card = card_of(tmp_path, report)
    data = card.data
    assert (data.pipeline_tag, data.library_name) == ("translation", "optimum")
    assert data.model_name == report.name
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in data.eval_results}
    assert found == {
        ("de", "bleu"): 28.125,
        ("de", "chrf"): 53.5,
        ("fr", "bleu"): 30.75,
        ("fr", "chrf"): 56.25,
    }
    assert {one.task_type for one in data.eval_results} == {"translation"}
    assert {one.dataset_name for one in data.eval_results} == {
        "de: pairs of interfaces",
        "fr: pairs of interfaces",
    }
    assert {one.dataset_args["samples"] for one in data.eval_results} == {4, 5}
    # Before and after, side by side.
    assert "| `de` | 4 | 31.25 | 28.12 | 55.50 | 53.50 |" in text
    assert "ORTModelForSeq2SeqLM" in text


def test_it_survives_the_hubs_own_writer(tmp_path):
    _, card = card_of(tmp_path, report_with())
    card.save(tmp_path / "again.md")
    again = hub.ModelCard.load(tmp_path / "again.md")
    assert again.data.eval_results == card.data.eval_results
    assert again.text == card.text


def test_where_it_came_from(tmp_path):
    export = ExportReport(source="org/nmt", exporter="optimum", opset=18, hub_id="org/nmt")
    text, card = card_of(tmp_path, report_with(export=export))
    assert card.data.base_model == "org/nmt"
    assert "[org/nmt](https://huggingface.co/org/nmt)" in text


def test_the_sources_card_and_licence_come_along(tmp_path):
    files = {"README.md": THEIRS, "LICENSE": "Their text\n"}
    text, card = card_of(tmp_path, report_with(), **files)
    assert (tmp_path / "bundle" / "README-original.md").read_text() == THEIRS
    assert (tmp_path / "bundle" / "LICENSE").read_text() == "Their text\n"
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en", "de"])
    assert "not known" not in text


def test_the_configuration_tells_the_licence(tmp_path):
    files = {"config.json": json.dumps({"license": "mit"})}
    text, card = card_of(tmp_path, report_with(), **files)
    assert card.data.license == "mit"
    assert "as config.json says" in text


def test_a_licence_that_nobody_tells_is_to_be_asked_for(tmp_path):
    text, card = card_of(tmp_path, report_with())
    assert card.data.license is None
    assert "licence is not known" in text


def test_a_figure_that_is_no_number_is_left_to_the_text(tmp_path):
    broken = scores(de=(4, math.nan, 53.5))
    _, card = card_of(tmp_path, report_with(reference=broken, candidate=broken))
    assert [one.metric_type for one in card.data.eval_results] == ["chrf"]


HOSTILE = "de\n---\nlicense: evil\n---\n<script>alert(1)</script> | [x](javascript:1) `"


def test_hostile_names_stay_text(tmp_path):
    hostile = scores(**{HOSTILE: (4, 20.0, 40.0)})
    report = report_with(reference=hostile, candidate=hostile, validation=HOSTILE)
    text, card = card_of(tmp_path, report, **{"config.json": json.dumps({"license": HOSTILE})})
    assert card.data.license == "other"
    assert "<script>" not in card.text.replace("\\<script>", "")
    assert "[x](" not in card.text.replace("\\[x](", "")
    assert text.count("\n---\n") == 1
