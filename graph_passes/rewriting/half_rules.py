"""Which nodes of a float32 model stay in float32, and why.

A float16 has 11 bits of precision, nothing beyond 65,504, and few bits below 6.1e-5. So these stay:

1. What has no float16: by ONNX's declaration of the operator, or because nobody knows its types.
2. ``If``, ``Loop`` and ``Scan`` hand over values in the type that they have; the nodes inside are
   treated like all others. Quantization keeps its scales.
3. Sums and exponentials, which grow without bound, and recurrences, which add roundings up.
4. A norm written out in operators, from the difference to the mean to the division by the root:
   squares leave the range of float16 on both sides.
5. Positions, sizes and buckets: what is computed from integers and constants alone on its way to a
   rounding, to an integer, to a sine or to an operand that is float32 by declaration.
6. What reads a constant beyond float16, or one whose numbers are all below its normal ones
   (an epsilon).
7. What only moves or compares values that are float32 on all sides: no Cast pairs that cancel out.
8. A Transpose that puts the first axis at the end, or next to it, in front of a product with a
   matrix. On the CPU, ONNX Runtime computes the product in float32 and then merges the three
   nodes, Transpose, Cast and MatMul. It crashes on these axes (1.31, MatmulTransposeFusion), unless
   the other operand has as many axes. With the Cast in front of the Transpose it does not.

Numbers that stand for infinity, such as −3.4e38 in a mask, are no reason where
:mod:`graph_passes.rewriting.bound_masks` brings them into the range first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.rewriting.bound_masks import (
    MOVING,
    filling,
    plain_constant,
    plain_floats,
)
from compress_onnx.graph_passes.rewriting.schemas import Signature
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS, read

LARGEST = 65504.0
"""The largest float16."""

SMALLEST_NORMAL = 2.0**-14
"""Below it a float16 has fewer bits, down to none at 2⁻²⁴."""

NO_HALF = "ONNX has no float16 of it"
UNKNOWN = "nobody knows its types"
NESTED = "what goes into and out of a nested graph keeps its type"
QUANTIZED = "quantization keeps its scales"
GROWS = "sums and exponentials outgrow float16"
RECURS = "a recurrence rounds at every step"
NORM = "a norm written out: squares outgrow float16"
EXACT = "positions and sizes are exact in float32 only"
BETWEEN = "it stands between float32 values"
CRASHES = "ONNX Runtime crashes on the CPU where it turns float16 in front of a product"

_GROWING = ("CumSum", "Exp", "Log", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd")
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_BY_OPERATOR = {
    **dict.fromkeys(_GROWING, GROWS),
    **dict.fromkeys(_QUANTIZING, QUANTIZED),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), RECURS),
}
AS_IT_IS = frozenset({"Cast", "Shape", "Size"})
"""Operators that read float32 and float16 alike."""

_LEFT_OUT = frozenset({"Cast", "Dropout", "Identity"})
"""Operators that runtimes take out where they do nothing."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_INTEGERS = frozenset(
    {
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
_ROUNDING = frozenset({"Ceil", "Cos", "Floor", "Mod", "Round", "Sin"})
_LOOKING_UP = frozenset({"Gather", "GatherElements", "GatherND"})
_ROOTS = frozenset({"Expand", "Identity", "Pow", "Reciprocal", "Sqrt", "Squeeze", "Unsqueeze"})
_COMBINING = frozenset({"Add", "Clip", "Div", "Max", "Mul", "Sub"})
_SUMS = frozenset({"ReduceMean", "ReduceSum"})
_SUMS_OF_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})

Types = Mapping[ir.Value, ir.DataType]


def unfit(array: Array) -> str | None:
    """Why float16 cannot hold ``array``; infinities and NaN it can."""
    magnitudes = np.abs(array[np.isfinite(array)])
    return unfit_magnitude(float(magnitudes.max(initial=0.0)), "a constant of it")


def unfit_magnitude(largest: float, what: str, room: float = 1.0) -> str | None:
    """Why float16 cannot hold values up to ``largest``, with ``room`` for others like them."""
    if largest * room > LARGEST:
        return f"{what} reaches {largest:.3g}: too large for float16"
    if 0 < largest < SMALLEST_NORMAL:
        return f"{what} reaches {largest:.3g} only: too small for float16"
    return None


def float_reasons(
    model: ir.Model, types: Types, given: Mapping[str, str] | None = None
) -> dict[ir.Node, str]:
    """Why nodes of ``model`` stay in float32.

    Args:
        model: a graph whose node names are unique, its constants bounded.
        types: of its values.
        given: further nodes by name, and why.

    Returns:
        Of the nodes that compute with float32; all others of these may compute with float16.
    """
    return _Rules(model, types, given or {}).reasons


class _Rules:
    def __init__(self, model: ir.Model, types: Types, given: Mapping[str, str]) -> None:
        self._types = types
        self._opset = model.opset_imports.get("", 1)
        self._constants: dict[ir.Value, str | None] = {}
        self._nodes = [
            node
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if any(map(self._is_float, (*node.inputs, *node.outputs)))
        ]
        self.reasons: dict[ir.Node, str] = {}
        for node in self._nodes:
            reason = given.get(node.name or "") or self._own_reason(node)
            if reason is not None:
                self.reasons[node] = reason
        for node in self._nodes:
            for member in self._norm(node):
                self.reasons.setdefault(member, NORM)
        for node in self._exact():
            self.reasons.setdefault(node, EXACT)
        for node in self._between():
            self.reasons.setdefault(node, BETWEEN)

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and self._types.get(value) == ir.DataType.FLOAT

    def _own_reason(self, node: ir.Node) -> str | None:
        """Rules 1, 2, 3, 6 and 8."""
        if any(
            attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            for attribute in node.attributes.values()
        ):
            return NESTED
        signature = Signature(node, self._opset)
        present = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
        if not signature.known or any(value not in self._types for value in present):
            return UNKNOWN
        if node.op_type in AS_IT_IS:
            return None
        if (axes := _turned_axes(node)) and _enters_product(node, axes):
            return CRASHES
        return _BY_OPERATOR.get(node.op_type) or self._unfit_operand(node, signature)

    def _unfit_operand(self, node: ir.Node, signature: Signature) -> str | None:
        fill = filling(node)
        reason = None if fill is None else unfit(fill)
        for index, value in enumerate(node.inputs):
            variable = signature.operand(index)
            if value is None or not self._is_float(value) or variable == "tensor(float)":
                continue
            if "tensor(float16)" not in signature.allowed(variable):
                return NO_HALF
            if value not in self._constants:
                array = plain_floats(value)
                self._constants[value] = None if array is None else unfit(array)
            reason = reason or self._constants[value]
        return reason

    def _norm(self, node: ir.Node) -> set[ir.Node]:
        """The norm that a sum of squares is part of (rule 4)."""
        if node.domain not in STANDARD_DOMAINS or not node.inputs or node.inputs[0] is None:
            return set()
        members = {node}
        x: ir.Value | None = node.inputs[0]
        if node.op_type in _SUMS:
            square = x.producer() if x is not None else None
            if square is None or not self._is_square(square):
                return set()
            members.add(square)
            x = square.inputs[0]
        elif node.op_type not in _SUMS_OF_SQUARES:
            return set()
        difference = x.producer() if x is not None else None
        if difference is not None and difference.op_type == "Sub":
            means = {v.producer() for v in difference.inputs if v is not None}
            means = {mean for mean in means if mean is not None and mean.op_type in _SUMS}
            if means:
                members |= {difference, *(mean for mean in means if mean is not None)}
        return members | self._roots(node)

    def _is_square(self, node: ir.Node) -> bool:
        if node.op_type == "Mul":
            return node.inputs[0] is node.inputs[1]
        if node.op_type != "Pow" or node.inputs[1] is None:
            return False
        exponent = node.inputs[1].const_value
        return exponent is not None and exponent.size == 1 and float(read(exponent).item()) == 2

    def _roots(self, node: ir.Node) -> set[ir.Node]:
        """What becomes of a sum of squares, up to where it meets the values again."""
        found: set[ir.Node] = set()
        waiting = [node]
        while waiting:
            for output in waiting.pop().outputs:
                for reader, _ in output.uses():
                    others = [v for v in reader.inputs if v is not None and v is not output]
                    constant = all(v.const_value is not None for v in others)
                    if reader in found or reader.op_type not in _ROOTS | _COMBINING:
                        continue
                    found.add(reader)
                    if reader.op_type in _ROOTS or constant:
                        waiting.append(reader)
        return found

    def _exact(self) -> set[ir.Node]:
        """Positions, sizes and buckets (rule 5)."""
        integral = self._from_integers()
        found: set[ir.Node] = set()
        waiting = [node for node in self._nodes if node in integral and self._rounds(node)]
        for node in self._nodes:
            signature = Signature(node, self._opset)
            waiting += [
                maker
                for index, value in enumerate(node.inputs)
                if self._is_float(value) and signature.operand(index) == "tensor(float)"
                if value is not None and (maker := value.producer()) in integral
                if maker is not None
            ]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                makers = {v.producer() for v in node.inputs if self._is_float(v) and v is not None}
                waiting += [maker for maker in makers if maker is not None and maker in integral]
        return found

    def _rounds(self, node: ir.Node) -> bool:
        return node.op_type in _ROUNDING or (
            node.op_type == "Cast" and self._types.get(node.outputs[0]) in _INTEGERS
        )

    def _from_integers(self) -> set[ir.Node]:
        """Nodes whose floats all come from integers and constants, and from no table of them."""
        found: set[ir.Node] = set()
        for node in self._nodes:
            floats = [v for v in node.inputs if self._is_float(v) and v is not None]
            made = all(v.producer() in found or plain_constant(v) for v in floats)
            if made and not (node.op_type in _LOOKING_UP and floats) and not _is_layer(node):
                found.add(node)
        return found

    def _between(self) -> set[ir.Node]:
        """Rule 7: forwards, whose operands are float32 all; backwards, whose readers are too."""
        candidates: set[ir.Node] = set()
        for node in self._nodes:
            if node in self.reasons or not self._is_neutral(node):
                continue
            data = [v for v in node.inputs if self._is_float(v) and v is not None]
            data = [v for v in data if not plain_constant(v)]
            if all(self._is_made_in_float(v, candidates) for v in data):
                candidates.add(node)
        found: set[ir.Node] = set()
        for node in reversed(self._nodes):
            readers = {reader for output in node.outputs for reader, _ in output.uses()}
            if node in candidates and all(
                reader in found or reader in self.reasons or self._takes_both(reader)
                for reader in readers
            ):
                found.add(node)
        return found

    def _takes_both(self, node: ir.Node) -> bool:
        """Whether a reader takes float32 as well as float16, and makes no float of it."""
        makes_floats = any(self._types.get(v) in _FLOATS for v in node.outputs)
        return node.op_type in AS_IT_IS and not makes_floats

    def _is_neutral(self, node: ir.Node) -> bool:
        if any(map(self._is_float, node.outputs)):
            return node.op_type in MOVING | {"Cast", "ConstantOfShape"}
        return node.op_type not in AS_IT_IS

    def _is_made_in_float(self, value: ir.Value, candidates: set[ir.Node]) -> bool:
        maker = value.producer()
        return maker is None or maker in self.reasons or maker in candidates


def _turned_axes(node: ir.Node) -> int:
    """How many axes a Transpose has that puts the first one at the end, or next to it (rule 8)."""
    if node.op_type != "Transpose" or "perm" not in node.attributes:
        return 0
    order = list(node.attributes["perm"].as_ints())
    rest = list(range(1, len(order)))
    turned = len(order) > 2 and order in ([*rest[:-1], 0, rest[-1]], [*rest, 0])
    return len(order) if turned else 0


def _enters_product(node: ir.Node, axes: int) -> bool:
    """Whether a MatMul multiplies the output of ``node`` by what may have fewer or more axes."""
    for reader, index in node.outputs[0].uses():
        if reader.op_type in _LEFT_OUT and _enters_product(reader, axes):
            return True
        if reader.op_type == "MatMul":
            other = reader.inputs[1 - index]
            if other is None or other.shape is None or len(other.shape) != axes:
                return True
    return False


def _is_layer(node: ir.Node) -> bool:
    """Whether a node multiplies by weights; an outer product of positions does not."""
    if node.op_type == "MatMul":
        return any(_sums(value, axis) for value, axis in zip(node.inputs, (-1, -2), strict=True))
    return node.op_type in {"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "RNN"}


def _sums(value: ir.Value | None, axis: int) -> bool:
    """Whether ``value`` is a weight whose ``axis`` has more than one entry."""
    if value is None or value.const_value is None:
        return False
    shape = value.const_value.shape.numpy()
    return len(shape) > 1 and shape[axis] > 1
