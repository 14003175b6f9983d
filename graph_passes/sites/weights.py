"""From the value that feeds a product to the initializer behind it.

A weight may reach its product through Identity (exporters merge equal initializers that way) and
through a Transpose that no constant folding removed. :func:`resolve` follows these and returns a
:class:`Weight`, or the reason why the value is not a weight that can be factored: also for one that
other operators make from initializers (Cast, DequantizeLinear, Split, Slice and so on).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
FLOAT_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)

COMPUTED = "no weight: both operands are computed"

_MAX_CONSTANT_DEPTH = 8
"""How far back to look for initializers; longer chains count as computed."""


@dataclass(frozen=True)
class Weight:
    """An initializer as a product sees it: a matrix [K, N], or a stack of them [.., K, N].

    Attributes:
        initializer: where the numbers are; possibly shared, so never edited in place.
        transposed: whether [K, N] is the transpose of what is stored.
    """

    initializer: ir.Value
    transposed: bool

    @property
    def key(self) -> str:
        """Identifies the weight in a plan: equal keys are the same matrix."""
        return f"{self.initializer.name}{'.T' if self.transposed else ''}"

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)`` without reading the numbers."""
        rows, columns = self._stored_shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def leading(self) -> tuple[int, ...]:
        """The shape of the stack, without the last two axes; ``()`` for a plain matrix."""
        return self._stored_shape[:-2]

    @property
    def stacked(self) -> bool:
        """Whether it is a stack of matrices, such as those of a layer of experts."""
        return bool(self.leading)

    @property
    def matrices(self) -> int:
        """How many matrices [K, N] it holds."""
        return math.prod(self.leading)

    @property
    def itemsize(self) -> int:
        """How many bytes one number takes."""
        assert self.initializer.const_value is not None
        return int(self.initializer.const_value.dtype.itemsize)

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        return _shape_of(self.initializer)

    def array(self) -> Array:
        """``[.., K, N]`` the numbers, in their own dtype."""
        assert self.initializer.const_value is not None
        stored = read(self.initializer.const_value)
        return np.swapaxes(stored, -1, -2) if self.transposed else stored


def read(tensor: ir.TensorProtocol) -> Array:
    """The numbers of ``tensor``, in its own dtype and shape.

    Those in external data are copied, because a tensor that was read keeps its file mapped: weight
    after weight, a large model would end up in memory as a whole.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return cast("Array", tensor.numpy())
    numbers: Array = tensor.numpy().copy()
    tensor.release()
    return numbers


def resolve(value: ir.Value, *, transposed: bool = False) -> Weight | str:
    """Find the initializer behind ``value``; ``transposed`` is what the consumer adds (transB)."""
    transposes: list[ir.Node] = []
    while (producer := _view_producer(value)) is not None:
        if producer.op_type == "Transpose":
            transposes.append(producer)
        value = _source(producer)
    made_by = value.producer()
    if made_by is not None:
        return _computed_by(made_by)
    if not value.is_initializer() or value.const_value is None:
        return COMPUTED
    reason = _unfit(value, value.const_value)
    if reason is not None:
        return reason
    rank = len(_shape_of(value))
    for transpose in reversed(transposes):
        if not _swaps_last_two(transpose, rank):
            return _computed_by(transpose)
    return Weight(value, transposed ^ (len(transposes) % 2 == 1))


def _view_producer(value: ir.Value) -> ir.Node | None:
    """The Identity or Transpose that ``value`` comes from, if it does."""
    producer = value.producer()
    return producer if producer is not None and _is_view(producer) else None


def _is_view(node: ir.Node) -> bool:
    return (
        node.domain in STANDARD_DOMAINS
        and node.op_type in {"Identity", "Transpose"}
        and bool(node.inputs)
        and node.inputs[0] is not None
    )


def _source(view: ir.Node) -> ir.Value:
    source = view.inputs[0]
    assert source is not None
    return source


def _computed_by(producer: ir.Node) -> str:
    if not _is_constant(producer.outputs[0]):
        return COMPUTED
    return f"weight computed by {producer.op_type} from constants: only plain weights are factored"


def _swaps_last_two(transpose: ir.Node, rank: int) -> bool:
    permutation = transpose.attributes.get("perm")
    order = list(permutation.as_ints()) if permutation else list(reversed(range(rank)))
    return order == [*range(rank - 2), rank - 1, rank - 2]


def _is_constant(value: ir.Value) -> bool:
    """Whether ``value`` is made of initializers alone; looks back generation by generation."""
    generation = {value}
    for _ in range(_MAX_CONSTANT_DEPTH + 1):
        producers = {found.producer() for found in generation if not found.is_initializer()}
        if None in producers:
            return False
        computed = [node for node in producers if node and node.op_type != "Constant"]
        if not all(node.inputs for node in computed):
            return False
        generation = {found for node in computed for found in node.inputs if found is not None}
    return not generation


def _unfit(value: ir.Value, tensor: ir.TensorProtocol) -> str | None:
    shape = _shape_of(value)
    if value.is_graph_input():
        return f"weight {value.name!r} is also a graph input: whoever runs it may override it"
    if len(shape) < 2:
        return f"weight {value.name!r} has {len(shape)} dimensions: not a matrix"
    if tensor.dtype not in FLOAT_TYPES:
        return f"weight {value.name!r} has type {tensor.dtype.name}: not supported"
    if 0 in shape:
        return f"weight {value.name!r} is empty"
    return None


def _shape_of(initializer: ir.Value) -> tuple[int, ...]:
    assert initializer.const_value is not None
    return tuple(int(size) for size in initializer.const_value.shape.numpy())


def readers(initializer: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
    """Every node that uses the numbers, through Identity and Transpose, and as which operand.

    A graph output counts as a reader that is None.
    """
    views = [initializer]
    while views:
        view = views.pop()
        if view.is_graph_output():
            yield None, 0
        for node, index in view.uses():
            if _is_view(node):
                views.append(node.outputs[0])
            else:
                yield node, index
