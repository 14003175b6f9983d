"""Where the channels of a value can be divided without a node: in the constants that make it.

A channel is a place on the last axis of ``value``, and each has a divisor. What makes the value is
followed back until constants take the division::

    a norm, or Mul by a constant    its constants are divided
    Add of a constant               so is the constant, and the other operand in turn
    MatMul or Gemm by a weight      the columns of the weight and the bias are divided
    MatMul of two values            the right one: (P·V) / d = P·(V / d), d alike in all rows of V
    Attention of opset 23           the same for V
    Reshape, Transpose, Split       what they read, with the channels where they were there
    Identity, Cast to the same      what they read

So the context of attention is divided in the columns of the projection that makes V.

Rules:

1. Nothing else may read a value on the way, but for its shape.
2. Channels are followed by an array of their numbers that broadcasts to the value; -1 is for places
   that are not divided, such as queries and keys in front of a Split.
3. Sizes are those of constants, or recorded. Where one that matters is unknown, nothing is found.
4. A weight that other nodes read stays, because each would need its own numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Float64, Indices
from compress_onnx.graph_passes.rewriting.sizes import (
    Sizes,
    last_sizes,
    parts,
    permutation,
)
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS, Weight, readers, resolve

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant that takes a part of the division.

    Attributes:
        node: what reads it.
        index: as which operand.
        channels: which channel's divisor applies where; it broadcasts to the constant.
    """

    node: ir.Node
    index: int
    channels: Indices

    def divisor(self, divisor: Float64) -> Float64:
        """What the constant is divided by, of a ``divisor`` [K] of the channels."""
        return np.append(divisor, 1.0)[self.channels]


@dataclass(frozen=True, eq=False)
class _Step:
    """How a node hands the division on.

    Attributes:
        index: the operand that is divided in turn.
        channels: where its channels are.
        constants: what else is divided.
    """

    index: int
    channels: Indices
    constants: tuple[Operand, ...] = ()


def operands(
    value: ir.Value, uses: Collection[tuple[ir.Node, int]], channels: int
) -> list[Operand]:
    """The constants to divide in place of ``value``, if only ``uses`` read it; else none.

    Args:
        value: has ``channels`` channels on its last axis.
        uses: its readers that are divided, and as which operand they read it.
        channels: how many there are.
    """
    found: list[Operand] = []
    places = np.arange(channels)
    while _is_read_by(value, uses):
        node = value.producer()
        if node is None or node.domain not in STANDARD_DOMAINS:
            return []
        taken = _taken(node, value, places)
        if taken:
            return [*found, *taken]
        passed = _STEPS.get(node.op_type)
        step = None if passed is None else passed(node, value, places)
        source = None if step is None else node.inputs[step.index]
        if step is None or source is None:
            return []
        found += step.constants
        value, uses, places = source, {(node, step.index)}, _trimmed(step.channels)
    return []


def _is_read_by(value: ir.Value, uses: Collection[tuple[ir.Node, int]]) -> bool:
    """Rule 1."""
    return not value.is_graph_output() and all(
        use in uses or _is(use.node, "Shape") for use in value.uses()
    )


def _taken(node: ir.Node, value: ir.Value, channels: Indices) -> list[Operand]:
    """What takes the whole division, if ``node`` ends the way back."""
    if channels.ndim > 1 or value is not node.outputs[0]:
        return []
    if node.op_type in _NORMS:
        scale_and_shift = [
            index for index in (1, 2) if node.inputs[index : index + 1] not in ((), (None,))
        ]
        axis = node.attributes.get_int("axis", -1)
        last = axis == -1 or (value.shape is not None and axis == len(value.shape) - 1)
        vectors = all(_is_vector(node.inputs[index], channels.size) for index in scale_and_shift)
        return [Operand(node, i, channels) for i in scale_and_shift] if last and vectors else []
    if node.op_type == "Mul":
        index = _constant_of(node, channels.size)
        return [] if index is None else [Operand(node, index, channels)]
    if node.op_type == "MatMul":
        fits = _columns(node, transposed=False) == channels.size
        return [Operand(node, 1, channels)] if fits else []
    if node.op_type == "Gemm":
        return _gemm(node, channels)
    return []


def _gemm(node: ir.Node, channels: Indices) -> list[Operand]:
    """Weight and bias of a Gemm."""
    transposed = bool(node.attributes.get_int("transB", 0))
    if _columns(node, transposed=transposed) != channels.size:
        return []
    weight = Operand(node, 1, channels[:, None] if transposed else channels)
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return [weight]
    return [weight, Operand(node, 2, channels)] if _is_vector(node.inputs[2], channels.size) else []


def _same(node: ir.Node, _: ir.Value, channels: Indices) -> _Step | None:
    """Identity, or a Cast that is one."""
    source, to = node.inputs[0], node.attributes.get_int("to", None)
    same = to is None or (source is not None and source.dtype == to)
    return _Step(0, channels) if same else None


def _shifted(node: ir.Node, _: ir.Value, channels: Indices) -> _Step | None:
    index = _constant_of(node, channels.size) if channels.ndim == 1 else None
    if index is None:
        return None
    return _Step(1 - index, channels, (Operand(node, index, channels),))


def _multiplied(node: ir.Node, _: ir.Value, channels: Indices) -> _Step | None:
    """Of two matrices at least: a vector would lose its axis."""
    matrices = all(len(last_sizes(operand)) > 1 for operand in node.inputs)
    return _Step(1, channels) if matrices and _alike_in_rows(channels) else None


def _alike_in_rows(channels: Indices) -> bool:
    return channels.ndim == 1 or channels.shape[-2] == 1


def _attention(node: ir.Node, value: ir.Value, channels: Indices) -> _Step | None:
    """Not one that joins V with a past. Where heads share V, it has too few channels."""
    past = [operand for operand in node.inputs[4:6] if operand is not None]
    present = [output for output in node.outputs[1:3] if output.uses() or output.is_graph_output()]
    plain = value is node.outputs[0] and not past and not present
    return _Step(2, channels) if plain and _alike_in_rows(channels) else None


def _transposed(node: ir.Node, _: ir.Value, channels: Indices) -> _Step | None:
    order = permutation(node)
    if order is None or channels.ndim > len(order):
        return None
    padded = channels.reshape((1,) * (len(order) - channels.ndim) + channels.shape)
    return _Step(0, padded.transpose(np.argsort(order)))


def _joined(node: ir.Node, value: ir.Value, channels: Indices) -> _Step | None:
    """Of one part of a Split along the last axis."""
    part, sizes = node.outputs.index(value), parts(node)
    if channels.ndim > 1 or not sizes or sizes[part] != channels.size:
        return None
    joined = np.full(sum(sizes), -1)
    start = sum(sizes[:part])
    joined[start : start + channels.size] = channels
    return _Step(0, joined)


def _reshaped(node: ir.Node, value: ir.Value, channels: Indices) -> _Step | None:
    before = _regrouped(channels, last_sizes(value), last_sizes(node.inputs[0]))
    return None if before is None else _Step(0, before)


def _regrouped(channels: Indices, after: Sizes, before: Sizes) -> Indices | None:
    """Where channels were ``before`` a Reshape, given the sizes on both sides.

    From the last axis on, axes are grouped such that both sides hold equally many numbers: these
    are in the same order. A group is one channel throughout, or has its own one everywhere.
    """
    if channels.ndim > len(after):
        return None
    padded = (1,) * (len(after) - channels.ndim) + channels.shape
    shape: Sizes = ()
    end, end_before = len(after), len(before)
    while prod(padded[:end]) > 1:
        start, start_before = end - 1, end_before - 1
        while True:
            if start < 0 or start_before < 0:
                return None
            here, there = after[start:end], before[start_before:end_before]
            if None in here or None in there:
                return None
            if _count(here) == _count(there):
                break
            if _count(here) < _count(there):
                start -= 1
            else:
                start_before -= 1
        if prod(padded[start:end]) == 1:
            shape = (1,) * len(there) + shape
        elif padded[start:end] == here:
            shape = there + shape
        else:
            return None
        end, end_before = start, start_before
    return channels.reshape([size for size in shape if size is not None])


def _count(sizes: Sizes) -> int:
    return prod(size for size in sizes if size is not None)


def _trimmed(channels: Indices) -> Indices:
    """Without leading axes of one place, down to one axis."""
    shape = list(channels.shape) or [1]
    while len(shape) > 1 and shape[0] == 1:
        del shape[0]
    return channels.reshape(shape)


def _constant_of(node: ir.Node, size: int) -> int | None:
    """Which operand of ``node`` is a constant with a number for each of ``size`` channels."""
    return next((i for i in (0, 1) if _is_vector(node.inputs[i], size)), None)


def _is_vector(value: ir.Value | None, size: int) -> bool:
    """Whether ``value`` is a constant with a number for each of ``size`` channels."""
    if value is None or value.const_value is None or value.is_graph_input():
        return False
    shape = value.const_value.shape.numpy()
    return bool(shape) and shape[-1] == size and prod(shape) == size


def _columns(node: ir.Node, *, transposed: bool) -> int | None:
    """Of the weight on the right, if it is one that nothing else reads."""
    operand = node.inputs[1]
    weight = None if operand is None else resolve(operand, transposed=transposed)
    if not isinstance(weight, Weight) or weight.stacked:
        return None
    alone = list(readers(weight.initializer)) == [(node, 1)]
    return weight.shape[1] if alone else None


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in STANDARD_DOMAINS


_STEPS: Mapping[str, Callable[[ir.Node, ir.Value, Indices], _Step | None]] = {
    "Add": _shifted,
    "Attention": _attention,
    "Cast": _same,
    "Identity": _same,
    "MatMul": _multiplied,
    "Reshape": _reshaped,
    "Split": _joined,
    "Transpose": _transposed,
}
