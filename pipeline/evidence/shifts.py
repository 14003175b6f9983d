"""Shift the outputs of linear sites: ``y' = y + d`` with d an input of the graph.

The way into the middle of a graph, for whoever disturbs it there. The inputs declare no rank, and
their default is a single zero, which broadcasts to any shape: the shifted model runs like the
original where none is fed, and nobody has to know the shape of y.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.sites.linear_site import LinearSite


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
    """
    values = {site.name: site.node.outputs[0].name or "" for site in sites}
    shifts = add_shifts(proto, values.values())
    for site in sites:
        kind = site.weight.initializer.dtype
        assert kind is not None
        name = shifts[values[site.name]]
        declared = proto.graph.input.add(name=name)
        declared.type.tensor_type.elem_type = int(kind)
        zero = np.zeros((), kind.numpy())
        proto.graph.initializer.append(onnx.numpy_helper.from_array(zero, name))
    return {site: shifts[value] for site, value in values.items()}


def shift_of(value: str) -> str:
    """The name of the shift of ``value``."""
    return f"{value}.shift"


def add_shifts(proto: onnx.ModelProto, values: Iterable[str]) -> dict[str, str]:
    """Put an addition behind each of ``values``, in place.

    The node that computes a value keeps its place; the addition, named after the shift, is next.

    Returns:
        The name of the shift by value; nothing declares it yet.
    """
    shifts = {value: shift_of(value) for value in values}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for index, value in enumerate(node.output):
            if value in shifts:
                copy.output[index] = f"{value}.unshifted"
                operands = [copy.output[index], shifts[value]]
                nodes.append(onnx.helper.make_node("Add", operands, [value], shifts[value]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return shifts
