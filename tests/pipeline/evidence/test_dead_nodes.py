import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress_onnx.pipeline.evidence.adjoint import without_dead_nodes
from compress_onnx.pipeline.runtime.session import open_session, run


def test_what_no_output_needs_goes_and_the_numbers_stay():
    weights = {name: np.full((3, 3), i + 1, np.float32) for i, name in enumerate("ab")}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["y"]),
            helper.make_node("MatMul", ["y", "b"], ["unused"]),
            helper.make_node("ReduceSum", ["unused"], ["unused sum"], keepdims=0),
        ],
        "dead",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    pruned = onnx.ModelProto.FromString(without_dead_nodes(model))
    onnx.checker.check_model(pruned)
    assert [node.output[0] for node in pruned.graph.node] == ["y"]
    assert [tensor.name for tensor in pruned.graph.initializer] == ["a"]
    assert len(model.graph.node) == 3
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    feeds = {"x": x}
    values = run(open_session(pruned.SerializeToString()), feeds, ["y"])
    np.testing.assert_array_equal(values["y"], x @ weights["a"])
