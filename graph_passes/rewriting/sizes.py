"""Sizes of the last axes of values, where constants or recorded shapes tell them.

Exporters that trace record no shapes of intermediate values. Yet a Reshape says that its last axes
are heads and their channels, and what is behind it follows. No shape is added to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import onnx_ir as ir

from compress_onnx.graph_passes.sites.reshaping import numbers, parts_of_target
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS

Sizes = tuple[int | None, ...]
"""Of the last axes, as many as are known to exist; None for a size that is unknown."""

_DEPTH = 8
"""How many nodes back to look."""


def last_sizes(value: ir.Value | None, depth: int = _DEPTH) -> Sizes:
    """Those of ``value`` that follow from constants, else those that are recorded."""
    if value is None:
        return ()
    node = value.producer()
    found: Sizes = ()
    if depth and node is not None and node.domain in STANDARD_DOMAINS:
        read = [last_sizes(operand, depth - 1) for operand in node.inputs]
        if value is node.outputs[0] and node.op_type in _RULES:
            found = _RULES[node.op_type](node, read)
        elif node.op_type == "Split" and (sizes := parts(node)):
            found = (*read[0][:-1], sizes[node.outputs.index(value)])
    recorded: Sizes = ()
    if value.const_value is not None:
        recorded = tuple(int(size) for size in value.const_value.shape.numpy())
    elif value.shape is not None:
        recorded = tuple(size if isinstance(size, int) else None for size in value.shape)
    return _merged(_merged(found, _read_by_weights(value)), recorded)


def _merged(one: Sizes, other: Sizes) -> Sizes:
    """``one``, and what it does not know from ``other``."""
    pairs = zip_longest(one[::-1], other[::-1])
    return tuple(a if a is not None else b for a, b in pairs)[::-1]


def _read_by_weights(value: ir.Value) -> Sizes:
    """The rows of a weight that multiplies ``value``."""
    for node, index in value.uses():
        if node.op_type == "MatMul" and node.domain in STANDARD_DOMAINS and index == 0:
            weight = node.inputs[1]
            if weight is not None and weight.const_value is not None:
                shape = weight.const_value.shape.numpy()
                return tuple(int(size) for size in shape[-2:-1])
    return ()


def permutation(transpose: ir.Node) -> Sequence[int] | None:
    """Which axis each axis of the output was; None if nobody knows how many there are."""
    if "perm" in transpose.attributes:
        return transpose.attributes["perm"].as_ints()
    value = transpose.inputs[0]
    return None if value is None or value.shape is None else range(len(value.shape))[::-1]


def parts(split: ir.Node) -> list[int]:
    """How large the parts of a Split along the last axis are; nothing if that is unknown."""
    whole, axis = split.inputs[0], split.attributes.get_int("axis", 0)
    if whole is None or (axis != -1 and (whole.shape is None or axis != len(whole.shape) - 1)):
        return []
    count = len(split.outputs)
    if "split" in split.attributes:
        sizes = list(split.attributes["split"].as_ints())
    elif len(split.inputs) > 1 and split.inputs[1] is not None:
        sizes = numbers(split.inputs[1]) or []
    else:
        size = next(iter(last_sizes(whole)[-1:]), None)
        sizes = [] if size is None or size % count else [size // count] * count
    return sizes if len(sizes) == count else []


_Rule = Callable[[ir.Node, Sequence[Sizes]], Sizes]
"""The sizes of a node's first output, given those of what it reads."""


def _same(_: ir.Node, read: Sequence[Sizes]) -> Sizes:
    return read[0]


def _elementwise(_: ir.Node, read: Sequence[Sizes]) -> Sizes:
    return _broadcast(*read)


def _broadcast(*operands: Sizes) -> Sizes:
    """A size above one is that of the result."""
    axes = zip_longest(*(sizes[::-1] for sizes in operands))
    return tuple(
        next((size for size in axis if size is not None and size > 1), None) for axis in axes
    )[::-1]


def _matmul(_: ir.Node, read: Sequence[Sizes]) -> Sizes:
    left, right = read
    if len(right) < 2:  # it may be a vector, and leave no axis
        return ()
    rows = (*_broadcast(left[:-2], right[:-2]), left[-2]) if len(left) > 1 else ()
    return (*rows, right[-1])


def _gemm(node: ir.Node, read: Sequence[Sizes]) -> Sizes:
    if len(read[1]) < 2:
        return (None, None)
    return (None, read[1][-2 if node.attributes.get_int("transB", 0) else -1])


def _transpose(node: ir.Node, read: Sequence[Sizes]) -> Sizes:
    order = permutation(node)
    if order is None:
        return ()
    padded = ((None,) * len(order) + read[0])[-len(order) :]
    return tuple(padded[axis] for axis in order)


def _reshape(node: ir.Node, _: Sequence[Sizes]) -> Sizes:
    """What it asks for: the constants at the end, which may be joined to what is computed."""
    target: list[int] = []
    for part in reversed(parts_of_target(node)):
        found = numbers(part)
        if found is None:
            maker = None if part is None else part.producer()
            if maker is None or maker.op_type != "Unsqueeze":
                break
            found = [-1]  # the size of one axis
        target = [*found, *target]
    return tuple(size if size > 0 else None for size in target)


def _attention(node: ir.Node, read: Sequence[Sizes]) -> Sizes:
    """In three dimensions the channels of all heads are on one axis, and V may have fewer heads."""
    heads = {node.attributes.get_int(f"{kind}_num_heads", None) for kind in ("q", "kv")}
    return (*read[0][:-1], *read[2][-1:]) if len(heads) == 1 else ()


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("Cast", "Dropout", "Identity", "Softmax"), _same),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub", "Where"), _elementwise),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Attention": _attention,
}
