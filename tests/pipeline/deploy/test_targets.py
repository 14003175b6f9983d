"""Each target's folder: what is in it, that it is whole, and what is refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
import small_models as small
import yaml
from defusedxml import ElementTree
from onnx import numpy_helper
from packages import encoder_model, encoder_package, perceptron_package

from compress_onnx.graph_passes.errors import CompressOnnxError, ModelFileError, RequestError
from compress_onnx.pipeline.deploy.package import Package, read_package
from compress_onnx.pipeline.deploy.targets import TARGETS, bundle, loading_lines
from compress_onnx.pipeline.files.bundle import verify_manifest, write_manifest

pytest.importorskip("cyclonedx", reason="needs the deploy extra")
pytest.importorskip("tritonclient.grpc", reason="needs the deploy extra")

BESIDE = [
    "1_Pooling/config.json",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
CARD = "README.md"
CASE = ["input_0.pb", "input_1.pb", "output_0.pb", "output_1.pb"]
TREES = {
    "sentence-transformers": [*BESIDE, CARD, "onnx/model.onnx"],
    "tei": [*BESIDE, CARD, "onnx/model.onnx"],
    "fastembed": [*BESIDE, CARD, "onnx/model.onnx"],
    "transformers-js": [*BESIDE, CARD, "onnx/model_quantized.onnx"],
    "optimum": [*BESIDE, CARD, "model.onnx"],
    "triton": [
        f"repository/tiny/{name}"
        for name in ("1/model.onnx", "config.pbtxt", "warmup/0.bin", "warmup/1.bin")
    ],
    "kserve": [
        "inference-service.yaml",
        *(
            f"repository/tiny/{name}"
            for name in ("1/model.onnx", "config.pbtxt", "warmup/0.bin", "warmup/1.bin")
        ),
    ],
    "mlserver": [
        "settings.json",
        *(f"tiny/v1/{name}" for name in ("model-settings.json", "model.onnx", "onnx_model.py")),
    ],
    "vespa": ["component.xml", "models/model.onnx", "models/tokenizer.json"],
    "opensearch": ["register.json", "tiny.zip"],
    "ort": [f"tiny/{name}" for name in (*BESIDE, "model.onnx")]
    + [f"tiny/test_data_set_0/{name}" for name in CASE],
}


def laid_out(folder: Path, target: str, package: Package) -> Path:
    bundle(package, target, folder)
    verify_manifest(folder)
    return folder


def files(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(n for n in found if not n.startswith("provenance/") and n != "manifest.json")


@pytest.fixture
def package(tmp_path) -> Package:
    return read_package(encoder_package(tmp_path / "package"), "tiny")


def test_every_target_has_a_tree_here():
    assert TREES.keys() == TARGETS.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_tree(tmp_path, package, target):
    folder = laid_out(tmp_path / "out", target, package)
    assert files(folder) == sorted(TREES[target])
    assert all(str(tmp_path) not in line for line in folder_texts(folder))
    assert loading_lines(package, target, folder)


def folder_texts(folder: Path) -> list[str]:
    """What a target reads as text: nothing in it may name a place on this machine."""
    kinds = {".json", ".md", ".pbtxt", ".yaml", ".xml"}
    return [p.read_text() for p in folder.rglob("*") if p.suffix in kinds]


@pytest.mark.parametrize("target", [n for n, t in TARGETS.items() if n not in {"opensearch"}])
def test_the_model_arrives_unchanged(tmp_path, package, target):
    folder = laid_out(tmp_path / "out", target, package)
    (model,) = folder.rglob("*.onnx")
    assert model.read_bytes() == package.model.read_bytes()


@pytest.mark.parametrize("target", [name for name, one in TARGETS.items() if one.versions])
def test_the_original_stands_beside_it(tmp_path, target):
    original = small.save(encoder_model(), tmp_path / "original.onnx")
    made = encoder_model()
    made.producer_name = "another"
    folder = encoder_package(tmp_path / "package", made)
    out = laid_out(tmp_path / "out", target, read_package(folder, "tiny", original=original))
    arrived = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.onnx")}
    assert len(arrived) == 2
    names = sorted(arrived)
    if target in {"sentence-transformers", "transformers-js"}:
        assert arrived["onnx/model.onnx"] == original.read_bytes()
    elif target == "ort":
        assert arrived["original/model.onnx"] == original.read_bytes()
    elif target == "optimum":
        assert arrived["model.onnx"] == original.read_bytes()
    else:
        assert arrived[names[0]] == original.read_bytes()
        assert "1/" in names[0] or "v1/" in names[0]
    assert (folder / "model.onnx").read_bytes() in arrived.values()


@pytest.mark.parametrize("target", [name for name, one in TARGETS.items() if not one.versions])
def test_an_original_that_a_target_cannot_have_is_refused(tmp_path, target):
    original = small.save(encoder_model(), tmp_path / "original.onnx")
    package = read_package(encoder_package(tmp_path / "package"), "tiny", original=original)
    with pytest.raises(RequestError, match="one version"):
        bundle(package, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_lines_load_the_compressed_one(tmp_path):
    original = small.save(encoder_model(), tmp_path / "original.onnx")
    folder = encoder_package(tmp_path / "package")
    alone, beside = read_package(folder, "tiny"), read_package(folder, "tiny", original=original)
    for target in ("sentence-transformers", "optimum"):
        out = laid_out(tmp_path / target, target, beside)
        lines = loading_lines(beside, target, out)
        assert "model_compressed.onnx" in lines
        assert "{" not in lines.replace('{"file_name"', "")
        assert "model_compressed" not in loading_lines(alone, target, out)


def test_an_original_of_another_model_is_refused(tmp_path):
    original = small.save(small.perceptron(), tmp_path / "original.onnx")
    with pytest.raises(RequestError, match="inputs of"):
        read_package(encoder_package(tmp_path / "package"), original=original)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_in_data_files_arrive(tmp_path, target):
    folder = encoder_package(tmp_path / "package")
    onnx.save(
        encoder_model(), folder / "model.onnx", save_as_external_data=True, location="weights.bin"
    )
    assert (folder / "weights.bin").is_file()
    out = laid_out(tmp_path / "out", target, read_package(folder, "tiny"))
    if target == "opensearch":
        zipfile.ZipFile(out / "tiny.zip").extractall(out / "unpacked")
    (model,) = out.rglob("*.onnx")
    feeds = small.sentences()
    expected = ort.InferenceSession(encoder_model().SerializeToString()).run(None, feeds)
    for ours, theirs in zip(ort.InferenceSession(model).run(None, feeds), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("target", "missing", "told"),
    [
        ("sentence-transformers", "modules.json", "modules.json"),
        ("sentence-transformers", "tokenizer.json", "tokenizer.json"),
        ("tei", "tokenizer.json", "tokenizer.json"),
        ("tei", "modules.json", "pooled"),
        ("fastembed", "special_tokens_map.json", "special_tokens_map.json"),
        ("transformers-js", "config.json", "config.json"),
        ("optimum", "config.json", "config.json"),
        ("vespa", "tokenizer.json", "tokenizer.json"),
        ("opensearch", "modules.json", "pooled"),
    ],
)
def test_what_a_target_needs(tmp_path, target, missing, told):
    folder = encoder_package(tmp_path / "package")
    (folder / missing).unlink()
    with pytest.raises(RequestError, match=told):
        bundle(read_package(folder, "tiny"), target, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package"]


@pytest.mark.parametrize("target", ["tei", "fastembed", "vespa"])
def test_a_pooling_that_a_target_does_not_have(tmp_path, target):
    folder = encoder_package(tmp_path / "package")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_sqrt_len_tokens": true}')
    with pytest.raises(RequestError, match="pools by"):
        bundle(read_package(folder, "tiny"), target, tmp_path / "out")


def test_tei_reads_known_outputs_only(tmp_path):
    folder = encoder_package(tmp_path / "package", encoder_model("hidden"))
    with pytest.raises(RequestError, match="hidden"):
        bundle(read_package(folder, "tiny"), "tei", tmp_path / "out")


def test_a_model_without_text_goes_to_servers(tmp_path):
    package = read_package(perceptron_package(tmp_path / "package"), "tiny")
    for target in ("triton", "kserve", "mlserver", "ort"):
        laid_out(tmp_path / target, target, package)


def test_names(tmp_path):
    folder = perceptron_package(tmp_path / "a package")
    with pytest.raises(RequestError, match="--name"):
        read_package(folder)
    with pytest.raises(RequestError, match="--name"):
        read_package(folder, "../elsewhere")
    assert read_package(folder, "fine-1.0_b").name == "fine-1.0_b"
    assert read_package(perceptron_package(tmp_path / "named")).name == "named"


def test_a_package_that_was_changed_is_refused(tmp_path):
    folder = encoder_package(tmp_path / "package")
    write_manifest(folder)
    read_package(folder, "tiny")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="not intact"):
        read_package(folder, "tiny")


def test_no_model_and_unknown_target(tmp_path, package):
    with pytest.raises(ModelFileError, match=r"no model\.onnx"):
        read_package(tmp_path)
    with pytest.raises(RequestError, match="no target 'tritn'"):
        bundle(package, "tritn", tmp_path / "out")


def test_what_is_not_ours_is_not_replaced(tmp_path, package):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(CompressOnnxError):
        bundle(package, "ort", tmp_path / "out")
    assert small.listing(tmp_path / "out") == {"thesis.txt": b"years of work"}
    bundle(package, "ort", tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "thesis.txt").exists()


def test_the_record_of_provenance(tmp_path, package):
    folder = laid_out(tmp_path / "out", "ort", package)
    record = json.loads((folder / "provenance" / "model.cdx.json").read_text())
    model = record["metadata"]["component"]
    assert (record["specVersion"], model["type"]) == ("1.6", "machine-learning-model")
    digest = hashlib.sha256(package.model.read_bytes()).hexdigest()
    assert model["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_opensearch_registers_what_is_in_the_zip(tmp_path, package):
    folder = laid_out(tmp_path / "out", "opensearch", package)
    content = (folder / "tiny.zip").read_bytes()
    body = json.loads((folder / "register.json").read_text())
    assert body["model_content_hash_value"] == hashlib.sha256(content).hexdigest()
    assert body["model_content_size_in_bytes"] == len(content)
    assert body["model_config"] == {
        "model_type": "bert",
        "embedding_dimension": small.WIDTH,
        "framework_type": "sentence_transformers",
        "pooling_mode": "MEAN",
        "normalize_result": True,
    }
    with zipfile.ZipFile(folder / "tiny.zip") as archive:
        assert sorted(archive.namelist()) == ["model.onnx", "tokenizer.json"]
        assert archive.read("model.onnx") == package.model.read_bytes()
    again = laid_out(tmp_path / "again", "opensearch", package)
    assert (again / "tiny.zip").read_bytes() == content


def test_vespa_is_told_what_the_graph_takes(tmp_path, package):
    folder = laid_out(tmp_path / "out", "vespa", package)
    component = ElementTree.parse(folder / "component.xml").getroot()
    told = {child.tag: child.text or child.get("path") for child in component}
    assert component.attrib == {"id": "tiny", "type": "hugging-face-embedder"}
    assert told == {
        "transformer-model": "models/model.onnx",
        "tokenizer-model": "models/tokenizer.json",
        "max-tokens": "12",
        "transformer-input-ids": "input_ids",
        "transformer-attention-mask": "attention_mask",
        "transformer-token-type-ids": None,
        "transformer-output": "last_hidden_state",
        "pooling-strategy": "mean",
        "normalize": "true",
    }


def test_kserve_names_are_those_of_kubernetes(tmp_path):
    package = read_package(perceptron_package(tmp_path / "package"), "My_Model.v1")
    folder = laid_out(tmp_path / "out", "kserve", package)
    service = yaml.safe_load((folder / "inference-service.yaml").read_text())
    assert service["metadata"]["name"] == "my-model-v1"
    assert service["spec"]["predictor"]["model"]["modelFormat"] == {"name": "onnx"}


def test_the_case_for_onnx_runtime_holds_elsewhere_too(tmp_path, package):
    """What ONNX Runtime answered is what ONNX's own evaluator answers."""
    folder = laid_out(tmp_path / "out", "ort", package) / "tiny"
    case = folder / "test_data_set_0"

    def read(kind):
        paths = sorted(case.glob(f"{kind}_*.pb"))
        tensors = [onnx.TensorProto.FromString(path.read_bytes()) for path in paths]
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}

    found = onnx.reference.ReferenceEvaluator(str(folder / "model.onnx")).run(None, read("input"))
    for ours, theirs in zip(found, read("output").values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
