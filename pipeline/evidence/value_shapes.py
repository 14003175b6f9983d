"""The shape of every value of a graph: as inferred, or as it is at inputs of given sizes.

Shape inference stops at operators of other domains and at much arithmetic on shapes; ONNX Runtime
knows. So the graph runs once, and every value's shape is measured.

What was measured holds for all inputs of those sizes only where no shape depends on what the inputs
hold:

1. Values: an output of a node depends on the data if an operand does, and so does a graph input.
   Sizes (``Shape``, ``Size``) depend on it only if the shape of their operand does.
2. Shapes: the shape of an output depends on the data if that of an operand does, or if an operand
   that decides about the shape does (the target of a Reshape, what NonZero counts, ...).
3. Such a shape is declared by its rank alone, the sizes open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.runtime.inner_values import expose
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

Shape = tuple[int | None, ...]
"""None for an open size."""

_ALL = frozenset(range(100))
_DECIDING: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(
        (
            "Compress",
            "ConstantOfShape",
            "If",
            "Loop",
            "NonMaxSuppression",
            "NonZero",
            "Range",
            "Scan",
            "Unique",
        ),
        _ALL,
    ),
    **dict.fromkeys(
        (
            "AffineGrid",
            "CenterCropPad",
            "Col2Im",
            "Expand",
            "OneHot",
            "Pad",
            "Reshape",
            "Resize",
            "Slice",
            "Split",
            "Squeeze",
            "Tile",
            "TopK",
            "Unsqueeze",
            "Upsample",
        ),
        _ALL - {0},
    ),
}
"""The operands that an operator's output has its shape from, beside the shapes of all operands."""

_SCATTERS = frozenset({"ScatterElements", "ScatterND"})

_SHAPE = ".measured_shape"


def shapes_of(proto: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of each value of the main graph as far as it is declared or can be inferred."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) < 2:  # small, and perhaps a shape that others follow from
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    inferred = onnx.shape_inference.infer_shapes(light).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    tensors = {value.name: value.type.tensor_type for value in values}
    return {
        name: tuple(d.dim_value if d.HasField("dim_value") else None for d in t.shape.dim)
        for name, t in tensors.items()
        if t.HasField("shape")
    }


def declare_sizes(
    proto: onnx.ModelProto, feeds: Mapping[str, Array], data_folder: Path | None = None
) -> None:
    """Declare all shapes of the main graph of ``proto``, in place, as they are at ``feeds``.

    Args:
        proto: the graph.
        feeds: one array for each input.
        data_folder: where its external data lies.

    Raises:
        ModelFileError: ONNX Runtime does not load or run the graph.
    """
    types = _types(proto, data_folder)
    shapes = _measured(proto, types, feeds, data_folder)
    loose = _loose(proto.graph)
    for value in proto.graph.input:
        if value.name in feeds:
            _declare(value, value.type.tensor_type.elem_type, feeds[value.name].shape)
    outputs = {value.name: value for value in proto.graph.output}
    del proto.graph.value_info[:]
    for name, shape in shapes.items():
        value = outputs[name] if name in outputs else proto.graph.value_info.add(name=name)
        _declare(value, types[name], (None,) * len(shape) if name in loose else shape)


def _declare(value: onnx.ValueInfoProto, kind: int, shape: Shape) -> None:
    value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))


def _types(proto: onnx.ModelProto, data_folder: Path | None) -> dict[str, int]:
    """The element type of each tensor that a node of the main graph computes."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    expose(light, _computed(proto.graph))
    spec = SessionSpec(threads=1, optimization="off")
    session = open_session(light.SerializeToString(), spec, data_folder=data_folder)
    kinds = {value.name: value.type for value in session.get_outputs()}
    return {
        name: onnx.TensorProto.DataType.Value(kind[7:-1].upper())
        for name, kind in kinds.items()
        if kind.startswith("tensor(")
    }


def _measured(
    proto: onnx.ModelProto,
    types: Mapping[str, int],
    feeds: Mapping[str, Array],
    data_folder: Path | None,
) -> dict[str, tuple[int, ...]]:
    """The shape at ``feeds`` of each value in ``types``."""
    measuring = onnx.ModelProto()
    measuring.CopyFrom(proto)
    measuring.graph.node.extend(
        onnx.helper.make_node("Shape", [name], [f"{name}{_SHAPE}"]) for name in types
    )
    del measuring.graph.output[:]
    expose(measuring, [f"{name}{_SHAPE}" for name in types])
    spec = SessionSpec(optimization="off")
    session = open_session(measuring.SerializeToString(), spec, data_folder=data_folder)
    found = run(session, feeds)
    return {name: tuple(np.asarray(found[f"{name}{_SHAPE}"]).tolist()) for name in types}


def _computed(graph: onnx.GraphProto) -> Iterator[str]:
    return (name for node in graph.node for name in node.output if name)


def _loose(graph: onnx.GraphProto) -> set[str]:
    """The values whose shape depends on the data (rules 1 and 2)."""
    data = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    loose: set[str] = set()
    for node in graph.node:
        captured = _captured(node)
        reads = captured | set(node.input)
        deciding = captured | {
            name
            for index, name in enumerate(node.input)
            if index in _DECIDING.get(node.op_type, ())
        }
        shaping = set(node.input[:1]) if node.op_type in _SCATTERS else reads
        if shaping & loose or deciding & data:
            loose.update(node.output)
        if reads & (loose if node.op_type in {"Shape", "Size"} else data):
            data.update(node.output)
    return loose


def _captured(node: onnx.NodeProto) -> set[str]:
    """What the nested graphs of ``node`` read, names of their own included."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _captured(inner) | set(inner.input)
            names.update(value.name for value in graph.output)
    return names
