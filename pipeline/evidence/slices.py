"""Write slices as gathers, which onnx-ad differentiates whatever the sizes of the other axes are.

    Slice(x, [start], [end], [axis], [step])    =    Gather(x, [start, start + step, …], axis)

It differentiates a Slice only where every axis has a fixed size, which no batch or sequence has,
and takes every element from start to end. Models with a product for each expert take the tokens of
each apart like that, and models that merge image patches every other row and column.

Rules:

1. The bounds are constants. One gather is written for each axis that is cut.
2. An axis that is cut has a fixed size. Of an open size only all there is can be taken.
3. Opset 16 at least: below it the gradient of Gather is not there either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Int64
from compress_onnx.pipeline.evidence.opset import opset_of
from compress_onnx.pipeline.evidence.value_shapes import shapes_of

_OPSET = 16
_FAR = 1 << 31  # bounds beyond this stand for the end, whatever the size


def gather_slices(proto: onnx.ModelProto) -> None:
    """Rewrite the slices of the main graph of ``proto`` that the rules allow, in place."""
    slices = [node for node in proto.graph.node if node.op_type == "Slice" and not node.domain]
    if opset_of(proto) < _OPSET or not slices:
        return
    constants, shapes = _constants(proto), shapes_of(proto)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        taken = None
        if node.op_type == "Slice" and not node.domain:
            taken = _taken(node, constants, shapes.get(node.input[0]))
        if taken is None:
            nodes.append(node)
        else:
            nodes.extend(_gathers(proto.graph, node, taken))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _gathers(
    graph: onnx.GraphProto, node: onnx.NodeProto, taken: Sequence[tuple[int, Int64]]
) -> Iterator[onnx.NodeProto]:
    value, output = node.input[0], node.output[0]
    for axis, indices in taken:
        name, gathered = f"{output}.indices.{axis}", f"{output}.gathered.{axis}"
        graph.initializer.append(onnx.numpy_helper.from_array(indices, name))
        yield onnx.helper.make_node("Gather", [value, name], [gathered], axis=axis)
        value = gathered
    yield onnx.helper.make_node("Identity", [value], [output], node.name)


def _taken(
    node: onnx.NodeProto,
    constants: Mapping[str, Int64],
    shape: tuple[int | None, ...] | None,
) -> list[tuple[int, Int64]] | None:
    """The axes that ``node`` cuts and the indices that it takes (rules 1 and 2)."""
    named = dict(enumerate(node.input[1:]))
    if shape is None or any(name and name not in constants for name in named.values()):
        return None
    bounds = {i: constants[name].reshape(-1).tolist() for i, name in named.items() if name}
    starts, ends = bounds[0], bounds[1]
    axes = bounds.get(2, list(range(len(starts))))
    steps = bounds.get(3, [1] * len(starts))
    taken = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        if size is not None:
            indices = np.arange(size, dtype=np.int64)[slice(start, end, step)]
            if len(indices) < size or step != 1:
                taken.append((axis % len(shape), indices))
        elif start != 0 or end < _FAR or step != 1:
            return None
    return taken


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
