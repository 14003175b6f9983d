"""Triton's configuration: read back by Triton's own message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from packages import encoder_package, perceptron_package

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.deploy.package import Package, Serving, read_package
from compress_onnx.pipeline.deploy.targets import bundle
from compress_onnx.pipeline.runtime.inputs import model_inputs, synthetic_feeds

messages = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs the deploy extra"
)
pytest.importorskip("cyclonedx", reason="needs the deploy extra")


def written(folder: Path, package: Package):
    from google.protobuf import text_format

    notes = bundle(package, "triton", folder)
    text = (folder / "repository" / package.name / "config.pbtxt").read_text()
    return text_format.Parse(text, messages.ModelConfig()), notes


def dynamically_quantized(folder: Path) -> Path:
    """ONNX Runtime's own: a scale comes from the whole batch."""
    original = small.save(small.perceptron(), folder / "original.onnx")
    package = perceptron_package(folder / "package")
    quantize_dynamic(original, package / "model.onnx")
    return package


def test_sizes_leave_out_the_axis_of_samples(tmp_path):
    config, _ = written(tmp_path / "out", read_package(encoder_package(tmp_path / "p"), "tiny"))
    assert config.max_batch_size == 32
    kinds = {value.name: (value.data_type, list(value.dims)) for value in config.input}
    integers = messages.DataType.Value("TYPE_INT64")
    assert kinds == {"input_ids": (integers, [-1]), "attention_mask": (integers, [-1])}
    assert [(value.name, list(value.dims)) for value in config.output] == [
        ("last_hidden_state", [-1, small.WIDTH]),
        ("pooler_output", [small.WIDTH]),
    ]


def test_a_fixed_batch_has_full_sizes_and_no_batching(tmp_path):
    model = small.perceptron()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    package = read_package(perceptron_package(tmp_path / "p", model), "tiny")
    config, notes = written(tmp_path / "out", package)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, small.FEATURES]
    assert not config.HasField("dynamic_batching")
    assert "free first axis" in notes[0]


def test_requests_share_a_batch_where_answers_do_not_depend_on_it(tmp_path):
    config, notes = written(tmp_path / "out", read_package(perceptron_package(tmp_path / "p")))
    assert config.HasField("dynamic_batching")
    assert not notes


def test_a_scale_of_the_whole_batch_forbids_dynamic_batching(tmp_path):
    folder = dynamically_quantized(tmp_path)
    config, notes = written(tmp_path / "out", read_package(folder))
    assert not config.HasField("dynamic_batching")
    assert "depend on the batch" in notes[0]
    asked = read_package(folder, serving=Serving(dynamic_batching=True))
    with pytest.raises(RequestError, match="dynamic batching is refused: answers depend"):
        bundle(asked, "triton", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_how_it_is_served(tmp_path):
    serving = Serving(threads=3, instances=2, max_batch=7, dynamic_batching=False)
    package = read_package(perceptron_package(tmp_path / "p"), serving=serving)
    config, notes = written(tmp_path / "out", package)
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert [group.count for group in config.instance_group] == [2]
    assert config.max_batch_size == 7
    assert not config.HasField("dynamic_batching")
    assert not notes


def test_two_versions_are_both_served(tmp_path):
    original = small.save(small.perceptron(), tmp_path / "original.onnx")
    package = read_package(perceptron_package(tmp_path / "p"), original=original)
    config, _ = written(tmp_path / "out", package)
    assert config.version_policy.HasField("all")
    assert (tmp_path / "out" / "repository" / package.name / "2" / "model.onnx").is_file()


def test_it_is_warmed_up_with_what_the_model_can_run(tmp_path):
    package = read_package(encoder_package(tmp_path / "p"), "tiny")
    config, _ = written(tmp_path / "out", package)
    (warmup,) = config.model_warmup
    feeds = synthetic_feeds(model_inputs(package.structure), batch=1, length=16, seed=0)
    assert warmup.inputs.keys() == feeds.keys()
    for name, entry in warmup.inputs.items():
        content = (tmp_path / "out/repository/tiny/warmup" / entry.input_data_file).read_bytes()
        array = np.frombuffer(content, np.int64).reshape(1, *entry.dims)
        np.testing.assert_array_equal(array, feeds[name])


def test_a_name_in_the_graph_is_no_path(tmp_path):
    model = small.perceptron()
    evil = "../../../evil"
    model.graph.input[0].name = evil
    for node in model.graph.node:
        node.input[:] = [evil if name == "x" else name for name in node.input]
    onnx.checker.check_model(model)
    package = read_package(perceptron_package(tmp_path / "p", model), "tiny")
    config, _ = written(tmp_path / "out", package)
    assert config.input[0].name == evil
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "p"]


def test_a_type_that_triton_does_not_know(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.COMPLEX64, ["b", 2]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    package = read_package(perceptron_package(tmp_path / "p", model), "tiny")
    with pytest.raises(RequestError, match="COMPLEX64"):
        bundle(package, "triton", tmp_path / "out")
