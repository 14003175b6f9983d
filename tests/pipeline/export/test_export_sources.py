"""What a source is, and ``.onnx`` files as sources: every way in which they can be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exporting import export_to
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from compress_onnx.graph_passes.errors import MissingDependencyError, ModelFileError, RequestError
from compress_onnx.pipeline.export.source import (
    FolderSource,
    HubSource,
    ModuleSource,
    OnnxSource,
    resolve_source,
)
from compress_onnx.pipeline.export.tasks import require_task, task_of
from compress_onnx.pipeline.recipe import SourceSpec


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
        "my.models:tiny": ModuleSource("my.models:tiny"),
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
from compress_onnx.pipeline.export import export
from compress_onnx.pipeline.export.torch_model import TorchModel
from compress_onnx.pipeline.recipe import SourceSpec
export(SourceSpec(model={str(path)!r}), Path({str(tmp_path)!r}), base_dir=Path())
heavy = {{"torch", "transformers", "optimum", "huggingface_hub", "onnxscript"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
