"""Batch invariance: 1 where samples do not meet, less where scales come from the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.compress.rivals import RIVALS
from compress_onnx.pipeline.measure import batch_invariance as batch_invariance_module
from compress_onnx.pipeline.measure.batch_invariance import batch_invariance
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.runtime.samples import Samples

WIDTH = 24


def save(path: Path, nodes, inputs, outputs, **weights) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def value(name: str, *shape, dtype=TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


@pytest.fixture
def model(tmp_path) -> Path:
    return small.save(small.perceptron(), tmp_path / "model.onnx")


@pytest.fixture
def rows() -> Samples:
    x = np.random.default_rng(0).normal(size=(32, small.FEATURES)).astype(np.float32)
    x[3] *= 30
    return Samples({"x": x})


@pytest.fixture
def dynamic(model, tmp_path) -> Path:
    """The same model with scales from the batch at hand."""
    RIVALS["dynamic int8"](model, tmp_path / "dynamic.onnx")
    return tmp_path / "dynamic.onnx"


def test_only_scales_from_the_batch_depend_on_the_batch(model, dynamic, rows):
    assert 1 - 1e-6 < batch_invariance(model, rows) <= 1
    assert batch_invariance(dynamic, rows) < 0.999


def test_an_answer_that_is_none_in_a_batch_depends_on_it(model, rows, monkeypatch):
    right = batch_invariance_module.run

    def broken(session, feeds):
        made = right(session, feeds)
        return {n: v * np.nan if len(v) > 1 else v for n, v in made.items()}

    monkeypatch.setattr(batch_invariance_module, "run", broken)
    assert batch_invariance(model, rows) == 0.0


def test_padding_is_left_out(tmp_path):
    """What stands on padding is garbage, alone and in a batch."""
    path = small.save(small.encoder(garbage=100.0), tmp_path / "encoder.onnx")
    model = onnx.load(path)
    del model.graph.output[1]  # pooled over padding, on purpose
    onnx.save(model, path)
    samples = Samples(small.sentences(), "attention_mask")
    assert batch_invariance(path, samples) > 1 - 1e-6


def test_pooling_over_padding_depends_on_the_batch(tmp_path):
    path = small.save(small.encoder(garbage=100.0), tmp_path / "encoder.onnx")
    assert batch_invariance(path, Samples(small.sentences(), "attention_mask")) < 0.9


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layout", ["scores", "flattened"])
def test_outputs_of_other_layouts_are_told_apart(tmp_path, layout, masked):
    """``[B, T, T]`` has padding along two axes, ``[B·T, D]`` its samples one after another."""
    last = {
        "scores": [
            helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["h", "t"], ["y"]),
        ],
        "flattened": [helper.make_node("Reshape", ["h", "rows"], ["y"])],
    }[layout]
    shape = {"scores": ["b", "s", "s"], "flattened": ["n", WIDTH]}[layout]
    inputs = [value("ids", "b", "s", dtype=TensorProto.INT64)]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"])]
    if masked:
        inputs.append(value("attention_mask", "b", "s", dtype=TensorProto.INT64))
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "axis"], ["column"]),
            helper.make_node("Mul", ["e", "column"], ["h"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["e"], ["h"]))
    table = np.random.default_rng(0).normal(size=(50, WIDTH)).astype(np.float32)
    path = save(
        tmp_path / "model.onnx",
        nodes + last,
        inputs,
        [value("y", *shape)],
        table=table,
        axis=np.array([2]),
        rows=np.array([-1, WIDTH]),
    )
    data = small.sentences()
    arrays = {"ids": data["input_ids"]}
    if masked:
        arrays["attention_mask"] = data["attention_mask"]
    samples = Samples(arrays, "attention_mask" if masked else None)
    assert batch_invariance(path, samples) > 1 - 1e-6


class TestWhatCannotShowIt:
    @pytest.mark.parametrize("fixed", [1, 4])
    def test_a_fixed_batch(self, tmp_path, fixed):
        path = self.identity(tmp_path, fixed)
        with pytest.raises(DataError, match=f"the graph fixes its batch at {fixed}"):
            batch_invariance(path, self.samples(8))

    def test_a_single_sample(self, model, rows):
        with pytest.raises(DataError, match="one sample makes no batch"):
            batch_invariance(model, rows.select(np.arange(1)))

    def test_outputs_of_integers(self, tmp_path):
        nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)]
        outputs = [value("y", "b", 3, dtype=TensorProto.INT64)]
        path = save(tmp_path / "model.onnx", nodes, [value("x", "b", 3)], outputs)
        with pytest.raises(DataError, match="no output of the model holds floating-point"):
            batch_invariance(path, self.samples(8))

    def test_the_report_has_the_reason_instead(self, tmp_path):
        path = self.identity(tmp_path, 4)
        report = validate(path, path, self.samples(8), batch_invariance=True)
        assert report.batch_invariance is report.batch_invariance_reference is None
        assert report.unmeasured.keys() == {"batch_invariance", "batch_invariance_reference"}
        assert "fixes its batch at 4" in report.unmeasured["batch_invariance"]

    def identity(self, folder, batch):
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        return save(folder / "model.onnx", nodes, [value("x", batch, 3)], [value("y", batch, 3)])

    def samples(self, count):
        return Samples({"x": np.ones((count, 3), np.float32)})


def test_reports_have_that_of_both_models(model, dynamic, rows):
    report = validate(model, dynamic, rows, batch_invariance=True)
    assert report.batch_invariance_reference > 1 - 1e-6
    assert report.batch_invariance == batch_invariance(dynamic, rows) < 0.999
    assert report.unmeasured == {}
    assert validate(model, dynamic, rows).batch_invariance is None
