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
from numpy.typing import NDArray

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
    def stacked(self) -> bool:
        """Whether it is a stack of matrices, such as those of a layer of experts."""
        return len(self._stored_shape) > 2

    @property
    def matrices(self) -> int:
        """How many matrices [K, N] it holds."""
        return math.prod(self._stored_shape[:-2])

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        return _shape_of(self.initializer)

    def array(self) -> NDArray[np.generic]:
        """``[.., K, N]`` the numbers, in their own dtype."""
        assert self.initializer.const_value is not None
        stored = cast("NDArray[np.generic]", self.initializer.const_value.numpy())
        return np.swapaxes(stored, -1, -2) if self.transposed else stored


def resolve(value: ir.Value, *, transposed: bool = False) -> Weight | str:
    """Find the initializer behind ``value``; ``transposed`` is what the consumer adds (transB)."""
    producer = value.producer()
    if producer is not None:
        return _resolve_through(producer, transposed)
    if not value.is_initializer() or value.const_value is None:
        return COMPUTED
    reason = _unfit(value, value.const_value)
    return reason or Weight(value, transposed)


def _resolve_through(producer: ir.Node, transposed: bool) -> Weight | str:
    source = producer.inputs[0] if producer.inputs else None
    if source is not None and producer.domain in STANDARD_DOMAINS:
        if producer.op_type == "Identity":
            return resolve(source, transposed=transposed)
        if producer.op_type == "Transpose":
            weight = resolve(source, transposed=not transposed)
            if isinstance(weight, str) or _swaps_last_two(producer, weight):
                return weight
    if not _is_constant(producer.outputs[0], _MAX_CONSTANT_DEPTH):
        return COMPUTED
    return f"weight computed by {producer.op_type} from constants: only plain weights are factored"


def _swaps_last_two(transpose: ir.Node, weight: Weight) -> bool:
    rank = len(_shape_of(weight.initializer))
    permutation = transpose.attributes.get("perm")
    order = list(permutation.as_ints()) if permutation else list(reversed(range(rank)))
    return order == [*range(rank - 2), rank - 1, rank - 2]


def _is_constant(value: ir.Value | None, depth: int) -> bool:
    """Whether ``value`` is made of initializers alone."""
    if value is None:
        return True
    producer = value.producer()
    if producer is None:
        return value.is_initializer()
    if producer.op_type == "Constant":
        return True
    return (
        depth > 0
        and bool(producer.inputs)
        and all(_is_constant(source, depth - 1) for source in producer.inputs)
    )


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
    if initializer.is_graph_output():
        yield None, 0
    for node, index in initializer.uses():
        if node.domain in STANDARD_DOMAINS and node.op_type in {"Identity", "Transpose"}:
            yield from readers(node.outputs[0])
        else:
            yield node, index
