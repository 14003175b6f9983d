"""A model's own metadata, such as the dictionary of a text recognizer, survives every command."""

from __future__ import annotations

import onnx
import small_models as small
from cli_runner import Cli


def test_a_dictionary_in_the_metadata_survives(capsys, monkeypatch, tmp_path):
    model = small.perceptron()
    model.doc_string = "reads signs"
    model.metadata_props.add(key="character", value="a\nb\nc")
    small.save(model, tmp_path / "model.onnx")
    output = tmp_path / "small.onnx"
    Cli(capsys, monkeypatch)("compress", tmp_path / "model.onnx", "-o", output)
    after = onnx.load(output)
    assert {entry.key: entry.value for entry in after.metadata_props}["character"] == "a\nb\nc"
    assert after.doc_string == "reads signs"
