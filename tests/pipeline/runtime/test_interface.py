"""A model's interface takes what the model takes, and holds no weights."""

from __future__ import annotations

import onnx
import pytest
import small_models as small
from stranger_graphs import STRANGERS

from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.runtime.inner_values import interface
from compress_onnx.pipeline.runtime.session import open_session


def inputs(session):
    return [(value.name, value.type, value.shape) for value in session.get_inputs()]


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_inputs_are_those_of_the_model(name, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(STRANGERS[name].build(), path)
    assert inputs(open_session(interface(open_original(path).model))) == inputs(open_session(path))


def test_there_are_no_weights(tmp_path):
    original = open_original(small.save(small.perceptron(), tmp_path / "model.onnx"))
    assert len(interface(original.model)) < 1000 < original.path.stat().st_size
