"""What is tidied up after rewriting, and what must stay."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
import pytest
from graphs import canonical, model, weights
from onnx import TensorProto, helper

from compress_onnx.graph_passes.rewriting.cleanup import CleanupPass

BEFORE = model(
    "g (float[N,8] x) => (float[N,6] y) { m = MatMul(x, w) r = Relu(m) y = Tanh(r) }",
    weights(w=(8, 6)),
)


def recorded(*shapes: tuple[str, int, list[int | str]]) -> onnx.ModelProto:
    proto = onnx.ModelProto.FromString(BEFORE.SerializeToString())
    proto.graph.value_info.extend(helper.make_tensor_value_info(*shape) for shape in shapes)
    return proto


def cleaned(proto: onnx.ModelProto, *, keep_metadata: bool = False) -> onnx.ModelProto:
    work = canonical(proto)
    CleanupPass(keep_metadata=keep_metadata)(work)
    return ir.to_proto(work)


def shapes_in(proto: onnx.ModelProto) -> set[str]:
    return {value.name for value in proto.graph.value_info} - {"w"}


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (TensorProto.FLOAT, ["N", 7]),
        (TensorProto.FLOAT, ["N", 1, 6]),
        (TensorProto.INT64, ["N", 6]),
    ],
)
def test_wrong_shapes_go_and_right_ones_stay(wrong: int, shape: list[int | str]) -> None:
    before = recorded(("m", wrong, shape), ("r", TensorProto.FLOAT, ["batch", 6]))
    after = cleaned(before)
    assert shapes_in(after) == {"r"}
    onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    onnx.checker.check_model(after, full_check=True)


def test_failed_inference_is_logged_and_drops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("a bad graph")

    before = recorded(("m", TensorProto.FLOAT, ["N", 7]), ("r", TensorProto.FLOAT, ["batch", 6]))
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    with caplog.at_level(logging.INFO):
        assert shapes_in(cleaned(before)) == {"m", "r"}
    assert "recorded shapes stay unchecked" in caplog.text
    assert "a bad graph" in caplog.text


def test_none_is_added() -> None:
    assert shapes_in(cleaned(BEFORE)) == set()


def test_large_weights_and_nested_graphs_are_seen() -> None:
    before = model(
        "g (float[N,64] x, bool c) => (float[N,64] y) { y = If(c) <"
        "then_branch = t () => (float[N,64] a) { m = MatMul(x, w) a = Tanh(m) }, "
        "else_branch = e () => (float[N,64] b) { b = Relu(x) }> }",
        weights(w=(64, 64)),
    )
    branch = before.graph.node[0].attribute[0].g
    branch.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 63]))
    after = cleaned(before)
    assert not after.graph.node[0].attribute[0].g.value_info
    assert [t.name for t in after.graph.initializer] == ["w"]


def test_metadata_goes_unless_it_is_kept() -> None:
    before = onnx.ModelProto.FromString(BEFORE.SerializeToString())
    node = before.graph.node[0]
    node.doc_string = "/home/somebody/model.py"
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/model.py")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc', 'linear']")
    node.metadata_props.add(key="compress_onnx.site", value="fc")
    assert b"somebody" not in cleaned(before).SerializeToString()
    kept = {prop.key for prop in cleaned(before).graph.node[0].metadata_props}
    assert kept == {"pkg.torch.onnx.name_scopes", "compress_onnx.site"}
    assert b"somebody" in cleaned(before, keep_metadata=True).SerializeToString()


def test_unread_weights_go_in_nested_graphs_too() -> None:
    before = model(
        "g (float[N,8] x, bool c) => (float[N,8] y) { y = If(c) <"
        "then_branch = t () => (float[N,8] a) { a = Tanh(x) }, "
        "else_branch = e () => (float[N,8] b) { b = Relu(x) }> }",
        weights(dead=(8, 8)),
    )
    inner = before.graph.node[0].attribute[1].g
    inner.initializer.append(onnx.numpy_helper.from_array(weights(u=(8, 8))["u"], "u"))
    after = cleaned(before)
    assert not after.graph.initializer
    assert not after.graph.node[0].attribute[1].g.initializer
