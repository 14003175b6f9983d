"""Rewriting and writing in one: factors that wait on the disk, results that are known to load."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models as small
from onnx import numpy_helper

from compress_onnx.graph_passes.errors import ModelFileError, OutputError
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.weights import read
from compress_onnx.pipeline.compress import compressed as steps
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.model_file import external_tensors, load_model
from compress_onnx.pipeline.files.spill import spill

HALF = CompressionSpec(method=MethodSpec(name="svd"), params=0.5)


def written(source, output, **options):
    learn(source).compress(HALF).write(output, **options)
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(output).graph.initializer}


@pytest.mark.parametrize("external", [False, True])
def test_factors_that_waited_on_the_disk_are_the_same(tmp_path, external):
    (tmp_path / "in").mkdir()
    inline = small.save(small.perceptron(), tmp_path / "inline.onnx")
    with_data = small.save_external(small.perceptron(), tmp_path / "in" / "model.onnx")
    before = small.listing(tmp_path / "in")
    expected = written(inline, tmp_path / "expected.onnx")
    found = written(with_data, tmp_path / "out" / "small.onnx", external_data=external)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert small.listing(tmp_path / "in") == before
    assert len(list((tmp_path / "out").iterdir())) == 1 + external


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
def test_a_spilled_tensor_reads_as_it_was_stored(tmp_path, dtype):
    arrays = {
        name: np.random.default_rng(seed).normal(size=shape).astype(dtype.numpy())
        for seed, (name, shape) in enumerate({"a": (5, 3), "b": (2, 4, 3), "c": (7,)}.items())
    }
    with spill(tmp_path / "deep" / "out.onnx") as store:
        tensors = {name: store(array, dtype, name) for name, array in arrays.items()}
        for name, array in arrays.items():
            assert (tensors[name].name, tensors[name].dtype) == (name, dtype)
            np.testing.assert_array_equal(read(tensors[name]), array)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_failure_while_weights_wait_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="No space left"), spill(tmp_path / "a" / "o.onnx"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_reading_a_weight_leaves_no_file_mapped(tmp_path):
    model = load_model(small.save_external(small.perceptron(), tmp_path / "model.onnx"))
    for tensor in external_tensors(model):
        first, second = read(tensor), read(tensor)
        np.testing.assert_array_equal(first, second)
        assert tensor.raw is None


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("save", [small.save, small.save_external])
def test_a_result_that_does_not_load_is_not_written(tmp_path, monkeypatch, save, external):
    (tmp_path / "in").mkdir()
    source, output = save(small.perceptron(), tmp_path / "in" / "m.onnx"), tmp_path / "out.onnx"
    output.write_bytes(b"what was there before")
    before = small.listing(tmp_path)

    class Spoil(steps.CleanupPass):
        def call(self, model):
            result = super().call(model)
            model.graph[0].op_type = "NoSuchOperator"
            return result

    monkeypatch.setattr(steps, "CleanupPass", Spoil)
    with pytest.raises(ModelFileError, match=r"NoSuchOperator.* though it loads .*m\.onnx"):
        written(source, output, external_data=external)
    assert small.listing(tmp_path) == before


def test_a_model_that_never_loaded_is_compressed_with_a_note(tmp_path, caplog):
    source = small.save(small.perceptron(), tmp_path / "model.onnx")
    model = onnx.load(source)
    model.graph.node[2].op_type = "NoSuchOperator"
    model.graph.node[2].domain = "unknown.domain"
    model.opset_import.add(domain="unknown.domain", version=1)
    onnx.save(model, source)
    with caplog.at_level(logging.WARNING):
        assert written(source, tmp_path / "out.onnx")
    assert "not proven that the result loads" in caplog.text
