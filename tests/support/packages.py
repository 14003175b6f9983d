"""Folders as ``run`` leaves them, small: an encoder with a tokenizer, a pooling and a report."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import small_models as small

POOLING = {"word_embedding_dimension": small.WIDTH, "pooling_mode_mean_tokens": True}
TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}


def encoder_model(output: str = "last_hidden_state") -> onnx.ModelProto:
    """The encoder of small_models, its outputs called as transformers do."""
    model = small.encoder()
    names = {"hidden": output, "pooler": "pooler_output"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in model.graph.output:
        value.name = names[value.name]
    return model


def encoder_package(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """A sentence encoder with mean pooling and normalization."""
    folder.mkdir(parents=True, exist_ok=True)
    small.save(model or encoder_model(), folder / "model.onnx")
    kind = "sentence_transformers.models."
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": kind + name}
        for place, (name, path) in enumerate(
            [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        )
    ]
    files = {
        "modules.json": modules,
        "config.json": {"model_type": "bert", "hidden_size": small.WIDTH},
        "sentence_bert_config.json": {"max_seq_length": 12},
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": {},
        "special_tokens_map.json": {},
        "1_Pooling/config.json": POOLING,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def perceptron_package(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """A model with nothing beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    small.save(model or small.perceptron(), folder / "model.onnx")
    return folder
