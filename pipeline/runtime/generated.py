"""Inputs that are made up from what the graph does with them.

Integers that are looked up in a table stay below its number of rows; masks are ones with padding at
the end of some samples; all else is as :mod:`.inputs` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.pipeline.runtime.inputs import ModelInput, model_inputs, synthetic_feeds
from compress_onnx.pipeline.runtime.samples import Samples

# What hands integers on as they are.
_TRANSPARENT = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Clip"}
# What hands a table on, row by row.
_ROWWISE = {"Cast", "Identity", "DequantizeLinear"}


def generated_samples(
    model: onnx.ModelProto, *, batch: int, length: int, seed: int, padded: bool = True
) -> Samples:
    """Samples for the inputs of ``model``, whose weights need not be loaded.

    Args:
        model: with the shapes of its stored tensors.
        batch: how many samples, where the graph leaves it free.
        length: of sequences, where the graph leaves it free.
        seed: of the random values.
        padded: whether masks end in zeros: the i-th sample lacks i mod 4 positions.

    Raises:
        DataError: an input is no tensor of numbers of known rank.
    """
    declared = model_inputs(model)
    feeds = synthetic_feeds(declared, batch=batch, length=length, seed=seed)
    rng = np.random.default_rng(seed)
    masks = []
    for value in declared:
        array = feeds[value.name]
        rows = _table_rows(model.graph, value.name)
        if _is_mask(value, array):
            feeds[value.name] = _mask(array) if padded else array
            masks.append(value.name)
        elif rows is not None and array.dtype.kind in "iu" and not _is_range(value):
            feeds[value.name] = rng.integers(rows, size=array.shape).astype(array.dtype)
    mask = masks[0] if len(masks) == 1 and feeds[masks[0]].ndim == 2 else None
    return Samples(feeds, mask_name=mask, origin=f"made-up inputs, {batch}x{length}")


def _is_mask(value: ModelInput, array: Array) -> bool:
    return "mask" in value.name.lower() and array.ndim == 2 and array.dtype.kind in "iub"


def _is_range(value: ModelInput) -> bool:
    return "position" in value.name.lower()


def _mask(ones: Array) -> Array:
    """``[B, T]``; every sample keeps at least one position."""
    batch, length = ones.shape
    kept = np.maximum(length - np.arange(batch) % 4, 1)[:, None]
    mask: Array = (np.arange(length) < kept).astype(ones.dtype)
    return mask


def _table_rows(graph: onnx.GraphProto, name: str) -> int | None:
    """The rows of the smallest table that ``name`` is looked up in; None where it is in none."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    reached = _reached(graph, name)
    rows = [
        shape[axis]
        for node in graph.node
        if node.op_type == "Gather" and len(node.input) == 2 and node.input[1] in reached
        for axis in [_axis(node)]
        if (shape := _stored_shape(node.input[0], sizes, makers)) and axis < len(shape)
    ]
    return min(rows, default=None)


def _reached(graph: onnx.GraphProto, name: str) -> set[str]:
    reached = {name}
    for node in graph.node:
        if node.op_type in _TRANSPARENT and node.input and node.input[0] in reached:
            reached.update(node.output)
    return reached


def _stored_shape(
    name: str, sizes: dict[str, tuple[int, ...]], makers: dict[str, onnx.NodeProto]
) -> tuple[int, ...] | None:
    while name not in sizes:
        node = makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return next(iter(_shapes(node)), None)
        if node.op_type not in _ROWWISE:
            return None
        name = node.input[0]
    return sizes[name]


def _shapes(node: onnx.NodeProto) -> Iterator[tuple[int, ...]]:
    return (tuple(attribute.t.dims) for attribute in node.attribute if attribute.HasField("t"))


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
