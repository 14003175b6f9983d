"""Inputs that have no axis of samples: flags, counts, tables, positions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.cli.options import samples_for
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.original import open_original
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.runtime.batches import check_samples, model_batches
from compress_onnx.pipeline.runtime.inputs import (
    ModelInput,
    constants_among,
    load_structure,
    model_inputs,
    synthetic_feeds,
)
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import open_session, run

INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)
IDS = ModelInput("ids", INT64, ("batch", "sequence"))
COUNT, WIDTH, FEATURES = 6, 5, 4


def declared(*shape):
    return ModelInput("other", INT64, shape)


@pytest.mark.parametrize(
    ("shape", "array", "constant"),
    [
        ((), (), True),
        ((1,), (1,), True),
        ((4, 4), (4, 4), True),
        ((COUNT,), (COUNT,), True),  # as many as samples by accident: the graph says a fixed size
        ((1,), (COUNT,), False),  # one for each sample
        (("sequence",), (WIDTH,), True),
        (("sequence",), (WIDTH + 1,), False),
        (("batch",), (COUNT,), False),
        (("rows",), (3,), False),
        ((None,), (3,), False),
    ],
)
def test_the_declaration_says_what_is_constant(shape, array, constant):
    arrays = {"ids": np.zeros((COUNT, WIDTH), np.int64), "other": np.zeros(array, np.int64)}
    found = constants_among(arrays, [IDS, declared(*shape)])
    assert found == ({"other"} if constant else set())


def test_a_batch_that_the_graph_fixes_is_no_constant():
    fixed = [ModelInput("ids", INT64, (4, 5)), ModelInput("mask", INT64, (4, 5))]
    arrays = {name: np.zeros((4, 5), np.int64) for name in ("ids", "mask")}
    assert constants_among(arrays, fixed) == set()
    flag = ModelInput("flag", INT64, (1,))
    assert constants_among({**arrays, "flag": np.zeros(1)}, [*fixed, flag]) == {"flag"}


def test_constants_are_fed_whole_with_every_batch():
    table = np.arange(WIDTH * WIDTH).reshape(WIDTH, WIDTH)
    mask = np.tril(np.ones((COUNT, WIDTH), np.int64))
    inputs = {"ids": mask, "mask": mask, "table": table, "steps": np.int64(3) + np.zeros((), int)}
    samples = Samples(inputs, "mask", constants=frozenset({"table"}))
    assert len(samples) == COUNT
    assert samples.constants == {"table", "steps"}
    for chosen in (samples, samples.select(np.array([0, 1])), samples.take(3)):
        assert chosen.constants == samples.constants
        for batch in chosen.batches(2):
            assert batch.feeds["table"].shape == (WIDTH, WIDTH)
            assert batch.feeds["steps"] == 3
            assert batch.constants == samples.constants


def test_only_constants_are_no_samples():
    with pytest.raises(DataError, match="no samples"):
        Samples({"x": np.float32(1.0) + np.zeros(())})


def flagged(tmp_path):
    """``y = x·W·scale + flag``: a number and a flag that no sample has its own of."""
    weight = np.random.default_rng(0).standard_normal((FEATURES, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], "linear"),
        helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        helper.make_node("Cast", ["flag"], ["offset"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["scaled", "offset"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "flagged",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", FEATURES]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "flagged.onnx")
    x = np.random.default_rng(1).standard_normal((COUNT, 3, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, scale=np.float32(2.0), flag=np.array([True]))
    return tmp_path / "flagged.onnx", tmp_path / "data.npz"


def test_a_file_with_constants_calibrates_validates_and_benchmarks(tmp_path):
    model, data = flagged(tmp_path)
    samples = samples_for(model, data, None)
    assert samples.constants == {"scale", "flag"}
    calibration = Evidence(open_original(model), samples, RunSettings(batch_size=4)).calibration
    assert calibration.stats["linear"].count == COUNT * 3
    report = validate(model, model, samples, batch_size=4)
    assert (report.samples, report.outputs[0].elements) == (COUNT, COUNT * 3 * 8)
    inputs = model_inputs(load_structure(model))
    feeds = synthetic_feeds(inputs, batch=2, length=3, seed=0, samples=samples)
    assert feeds["scale"] == 2.0
    assert feeds["scale"].shape == ()
    assert run(open_session(model), feeds)["y"].shape == (2, 3, 8)


def test_a_constant_of_another_size_is_refused(tmp_path):
    model, _ = flagged(tmp_path)
    x = np.zeros((COUNT, 3, FEATURES), np.float32)
    wrong = {"x": x, "scale": np.zeros((), np.float32), "flag": np.ones(2, bool)}
    samples = Samples(wrong, constants=frozenset({"flag"}))
    with pytest.raises(DataError, match="axis 0 is 2 instead of 1"):
        check_samples(open_session(model), samples)


def test_axes_that_the_graph_fixes_are_not_trimmed(tmp_path):
    """As many heads as positions: [B, heads, T, D] must keep its heads when padding is cut off."""
    heads = WIDTH
    shapes = {"mask": ["b", "t"], "past": ["b", heads, "p", 2]}
    types = {"mask": TensorProto.INT64, "past": TensorProto.FLOAT}
    graph = helper.make_graph(
        [helper.make_node("Identity", ["past"], ["y"]), helper.make_node("Shape", ["mask"], ["s"])],
        "heads",
        [helper.make_tensor_value_info(n, types[n], shape) for n, shape in shapes.items()],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["past"]),
            helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    mask = np.zeros((2, WIDTH), np.int64)
    mask[:, :2] = 1
    past = np.zeros((2, heads, 3, 2), np.float32)
    session = open_session(model.SerializeToString())
    (batch,) = model_batches(session, Samples({"mask": mask, "past": past}, "mask"), 8)
    assert batch.feeds["mask"].shape == (2, 2)
    assert batch.feeds["past"].shape == past.shape


def test_sizes_that_are_baked_in_are_named():
    shape = numpy_helper.from_array(np.array([4, 3], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], "tokens")],
        "baked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString())
    assert run(session, {"x": np.zeros((4, 3), np.float32)})["y"].shape == (4, 3)
    with pytest.raises(ModelFileError, match=r"Reshape 'tokens'.* baked in") as caught:
        run(session, {"x": np.zeros((5, 3), np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [WIDTH, WIDTH + 1])
def test_padding_stays_where_a_later_axis_has_the_masks_length(size):
    """The cross attention's past [B, heads, S, D] belongs to the mask's S positions."""
    shapes = {"mask": ["b", "s"], "past": ["b", 2, "source", 3]}
    types = {"mask": TensorProto.INT64, "past": TensorProto.FLOAT}
    graph = helper.make_graph(
        [helper.make_node("Identity", ["past"], ["y"]), helper.make_node("Shape", ["mask"], ["n"])],
        "past",
        [helper.make_tensor_value_info(n, types[n], shape) for n, shape in shapes.items()],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["past"]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    mask = np.zeros((2, WIDTH), np.int64)
    mask[:, :2] = 1
    past = np.zeros((2, 2, size, 3), np.float32)
    session = open_session(model.SerializeToString())
    (batch,) = model_batches(session, Samples({"mask": mask, "past": past}, "mask"), 8)
    assert batch.feeds["mask"].shape == (2, WIDTH if size == WIDTH else 2)
    np.testing.assert_array_equal(batch.mask, batch.feeds["mask"].astype(bool))
