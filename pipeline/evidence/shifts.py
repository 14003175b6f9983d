"""Shift the outputs of linear sites: ``y' = y + d`` with d an input of the graph.

The way into the middle of a graph, for whoever differentiates it or disturbs it there. The inputs
have zeros as their default, so the shifted model runs like the original where none is fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.sites.find import LinearSite


def can_shift(site: LinearSite) -> bool:
    """Whether the site's output is ``[..., N]``, at the top level."""
    return not (site.nested or site.on_left)


def self_contained(model: ir.Model, data_folder: Path) -> onnx.ModelProto:
    """A copy of ``model`` with all weights inside and without inferred shapes."""
    proto = ir.to_proto(model)
    onnx.load_external_data_for_model(proto, str(data_folder))
    del proto.graph.value_info[:]
    return proto


def shift_outputs(proto: onnx.ModelProto, sites: Sequence[LinearSite]) -> dict[str, str]:
    """Add a shift to the output of each of ``sites``, in place.

    Returns:
        The name of the shift input by site name.

    Raises:
        RequestError: the rank of a site's output is unknown.
    """
    by_value = {site.node.outputs[0].name: site for site in sites}
    shifts = {site.name: f"{site.node.outputs[0].name}.shift" for site in sites}
    ranks = {name: len(shape) for name, shape in shapes_of(proto).items()}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        site = by_value.get(node.output[0]) if node.output else None
        if site is not None:
            value, shift = node.output[0], shifts[site.name]
            copy.output[0] = f"{value}.unshifted"
            nodes.append(onnx.helper.make_node("Add", [copy.output[0], shift], [value], shift))
            if value not in ranks:
                raise RequestError(
                    f"the rank of {site.name}'s output is unknown: run ONNX shape inference on "
                    "the model first, or use --method asvd --one-shot"
                )
            _declare(proto, shift, site, ranks[value])
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return shifts


def _declare(proto: onnx.ModelProto, shift: str, site: LinearSite, rank: int) -> None:
    kind = site.weight.initializer.dtype
    assert kind is not None
    shape = [None] * (rank - 1) + [site.out_features]
    proto.graph.input.append(onnx.helper.make_tensor_value_info(shift, int(kind), shape))
    zero = np.zeros([1] * (rank - 1) + [site.out_features], kind.numpy())
    proto.graph.initializer.append(onnx.numpy_helper.from_array(zero, shift))


def shapes_of(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The shape of each value as far as shape inference knows it; None for an open size."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
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
