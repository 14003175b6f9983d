"""Write slices as gathers, which onnx-ad differentiates whatever the sizes of the other axes are.

    Slice(x, [start], [end], [axis], [step])    =    Gather(x, [start, start + step, …], axis)

It differentiates a Slice only where every axis has a fixed size, which no batch or sequence has.
Models with a product for each expert take the tokens of each apart like that.

Rules:

1. The slice is along one axis of fixed size, and its bounds are constants.
2. Opset 16 at least: below it the gradient of Gather is not there either.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Int64
from compress_onnx.pipeline.evidence.shifts import shapes_of

_OPSET = 16


def gather_slices(proto: onnx.ModelProto) -> None:
    """Rewrite the slices of the main graph of ``proto`` that the rules allow, in place."""
    opset = next(entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"})
    slices = [node for node in proto.graph.node if node.op_type == "Slice" and not node.domain]
    if opset < _OPSET or not slices:
        return
    constants, shapes = _constants(proto), shapes_of(proto)
    for node in slices:
        found = _taken(node, constants, shapes.get(node.input[0]))
        if found is not None:
            axis, indices = found
            name = f"{node.output[0]}.indices"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(indices, name))
            gather = onnx.helper.make_node(
                "Gather", [node.input[0], name], list(node.output), node.name, axis=axis
            )
            node.CopyFrom(gather)


def _taken(
    node: onnx.NodeProto,
    constants: Mapping[str, Int64],
    shape: tuple[int | None, ...] | None,
) -> tuple[int, Int64] | None:
    """The axis and the indices that ``node`` takes (rule 1)."""
    given = [constants.get(name) for name in node.input[1:]]
    operands = [int(found.item()) for found in given if found is not None and found.size == 1]
    if shape is None or len(operands) < len(given) or len(operands) < 3:
        return None
    start, end, axis, *step = operands
    axis %= len(shape)
    size = shape[axis]
    if size is None:
        return None
    return axis, np.arange(size, dtype=np.int64)[start : end : step[0] if step else 1]


def _constants(proto: onnx.ModelProto) -> dict[str, Int64]:
    """The integers that are in the graph, in initializers and Constant nodes."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    integers = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
    return {
        name: onnx.numpy_helper.to_array(tensor).astype(np.int64)
        for name, tensor in tensors.items()
        if tensor.data_type in integers and len(tensor.dims) < 2
    }
