"""Pad in front of convolutions and pools, where onnx-ad does not know how they pad.

1. It differentiates no ``auto_pad``. Of a window of k elements that moves by a stride over n,
   ``SAME`` leaves ``⌈n / stride⌉`` results, which takes ``(⌈n / stride⌉ − 1)·stride + k − n``
   elements of padding, at least 0. An odd one goes to the end for ``SAME_UPPER``, else to the
   start. ONNX Runtime takes it for no dilated window.
2. The gradient that it makes of a padded convolution can be wrong: a ConvTranspose with an
   ``output_shape``, which shares the padding out anew. So the padding becomes a node of its own.
3. The same holds for pools of averages, where padding does not count: they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compress_onnx.pipeline.evidence.value_shapes import Shape, shapes_of

_PADDED = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})
_SAME = frozenset({b"SAME_LOWER", b"SAME_UPPER"})


def write_out_pads(proto: onnx.ModelProto) -> None:
    """Apply the rules to the main graph of ``proto``, in place; open sizes are left alone.

    Raises:
        ValueError: rule 3.
    """
    padded = [node for node in proto.graph.node if node.op_type in _PADDED and not node.domain]
    shapes = shapes_of(proto) if padded else {}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type in _PADDED and not node.domain:
            _write_pads(node, shapes)
            if any(_pads_of(node)) and node.op_type == "Conv":
                nodes.append(_pad_in_front(proto.graph, node))
            elif any(_pads_of(node)) and node.op_type != "MaxPool":
                raise ValueError(f"no gradient of {node.op_type} with padding is known to be right")
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _write_pads(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> None:
    """Rule 1."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("auto_pad") not in _SAME:
        return
    kernel = attributes.get("kernel_shape") or shapes.get(node.input[1], ())[2:]
    pads = _pads(shapes.get(node.input[0], ())[2:], kernel, attributes)
    if pads is not None:
        _set_pads(node, pads, without={"auto_pad", "pads", "ceil_mode"})


def _pads(
    sizes: Shape, kernel: Sequence[int | None], attributes: Mapping[str, object]
) -> list[int] | None:
    """The starts of all axes, then the ends; None where a size is open."""
    if not sizes or len(kernel) != len(sizes) or None in (*sizes, *kernel):
        return None
    strides = cast("Sequence[int]", attributes.get("strides", [1] * len(sizes)))
    starts, ends = [], []
    known = cast("Sequence[int]", sizes), cast("Sequence[int]", kernel)
    for size, width, stride in zip(*known, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        less, more = total // 2, total - total // 2
        upper = attributes["auto_pad"] == b"SAME_UPPER"
        starts.append(less if upper else more)
        ends.append(more if upper else less)
    return starts + ends


def _pads_of(node: onnx.NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "pads"), [])


def _pad_in_front(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto:
    """Rule 2: take the padding out of ``node``, in place; returns the node that does it."""
    pads = _pads_of(node)
    half = len(pads) // 2
    name, value = f"{node.output[0]}.pads", f"{node.output[0]}.padded"
    array = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    graph.initializer.append(numpy_helper.from_array(array, name))
    padding = helper.make_node("Pad", [node.input[0], name], [value])
    node.input[0] = value
    _set_pads(node, [0] * len(pads), without={"pads"})
    return padding


def _set_pads(node: onnx.NodeProto, pads: Sequence[int], without: set[str]) -> None:
    kept = [a for a in node.attribute if a.name not in without]
    kept.append(helper.make_attribute("pads", pads))
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
