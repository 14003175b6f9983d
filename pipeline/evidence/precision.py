"""Write a graph in single precision: gradients in half precision lose what is small."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_OTHERS = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision", "stash_type"})


def in_float32(proto: onnx.ModelProto) -> None:
    """Make every float of ``proto`` a float32, in place: weights, inputs, outputs and casts."""
    _convert(proto.graph)
    for function in proto.functions:
        for node in function.node:
            _convert_node(node)


def is_float32(proto: onnx.ModelProto) -> bool:
    """Whether no initializer of the main graph is of another kind of float."""
    return all(tensor.data_type not in _OTHERS for tensor in proto.graph.initializer)


def _convert(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        _convert_node(node)


def _convert_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _OTHERS:
            attribute.i = TensorProto.FLOAT
        _convert_tensor(attribute.t)
        for graph in (attribute.g, *attribute.graphs):
            _convert(graph)


def _convert_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHERS:
        exact = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
