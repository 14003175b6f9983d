"""From the value that feeds a MatMul to the initializer behind it.

A weight may reach its MatMul through Identity (exporters merge equal initializers that way) and
through a Transpose that no constant folding removed. :func:`resolve` follows these and returns a
:class:`Weight`, or the reason why the value is not a weight that can be factored.
"""

from __future__ import annotations

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

_COMPUTED = "no weight: both operands are computed"


@dataclass(frozen=True)
class Weight:
    """A two-dimensional initializer as a MatMul sees it.

    Attributes:
        initializer: where the numbers are; possibly shared, so never edited in place.
        transposed: whether the MatMul sees the transpose.
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
        assert self.initializer.const_value is not None
        rows, columns = (int(size) for size in self.initializer.const_value.shape.numpy())
        return (columns, rows) if self.transposed else (rows, columns)

    def array(self) -> NDArray[np.generic]:
        """``[K, N]`` the numbers, in their own dtype."""
        assert self.initializer.const_value is not None
        stored = cast("NDArray[np.generic]", self.initializer.const_value.numpy())
        return stored.T if self.transposed else stored


def resolve(value: ir.Value, *, transposed: bool = False) -> Weight | str:
    """Find the initializer behind ``value``; ``transposed`` is what the consumer adds (transB)."""
    producer = value.producer()
    if producer is not None:
        return _resolve_through(producer, transposed)
    if not value.is_initializer() or value.const_value is None:
        return _COMPUTED
    reason = _unfit(value, value.const_value)
    return reason or Weight(value, transposed)


def _resolve_through(producer: ir.Node, transposed: bool) -> Weight | str:
    source = producer.inputs[0] if producer.inputs else None
    if source is None or producer.domain not in STANDARD_DOMAINS:
        return _COMPUTED
    if producer.op_type == "Identity":
        return resolve(source, transposed=transposed)
    if producer.op_type == "Transpose":
        permutation = producer.attributes.get("perm")
        if permutation is None or tuple(permutation.as_ints()) == (1, 0):
            return resolve(source, transposed=not transposed)
    if source.is_initializer():
        return f"weight behind {producer.op_type}: not supported"
    return _COMPUTED


def _unfit(value: ir.Value, tensor: ir.TensorProtocol) -> str | None:
    if value.is_graph_input():
        return f"weight {value.name!r} is also a graph input: whoever runs it may override it"
    if len(tensor.shape) != 2:
        return f"weight {value.name!r} has {len(tensor.shape)} dimensions, not 2"
    if tensor.dtype not in FLOAT_TYPES:
        return f"weight {value.name!r} has type {tensor.dtype.name}: not supported"
    return None


def readers(initializer: ir.Value) -> Iterator[ir.Node | None]:
    """Every node that uses the numbers, through Identity and Transpose; None for a graph output."""
    if initializer.is_graph_output():
        yield None
    for node, _ in initializer.uses():
        if node.domain in STANDARD_DOMAINS and node.op_type in {"Identity", "Transpose"}:
            yield from readers(node.outputs[0])
        else:
            yield node
