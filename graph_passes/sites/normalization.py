"""What makes a value: a normalization over its units, or something else.

Rules:

1. An operator that normalizes the last axis, of the standard domain or of ONNX Runtime's own.
2. The same written out: ``n / sqrt(mean(z²) + ε)``, as Div or as Mul by a Reciprocal. It is a
   LayerNormalization where n subtracts its mean, else an RMSNormalization.
3. Between the normalization and the value may lie what leaves the units as they are (casts,
   reshapes, the choice of positions) and what scales or shifts each by a constant.
4. Everything else is no normalization: the sum of a residual above all.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS

_OPERATORS = frozenset(
    {
        "EmbedLayerNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
_NORMALIZING_DOMAINS = STANDARD_DOMAINS | {"com.microsoft"}
_UNCHANGED_UNITS = frozenset(
    {"Cast", "Dropout", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
_AFFINE = frozenset({"Add", "Div", "Mul", "Sub"})


class Origin(NamedTuple):
    """What makes a value: an operator's type, or ``input`` for an input of the graph."""

    kind: str
    normalized: bool


def origin_of(value: ir.Value) -> Origin:
    """Find the operator that determines how the units of ``value`` are distributed."""
    while (node := value.producer()) is not None:
        kind = normalization(node)
        if kind is not None:
            return Origin(kind, normalized=True)
        source = _source(node)
        if source is None or source.const_value is not None:  # a table that rows are taken from
            return Origin(node.op_type, normalized=False)
        value = source
    return Origin("input", normalized=False)


def normalization(node: ir.Node) -> str | None:
    """The kind of normalization that ``node`` computes or completes; None if it is none."""
    if node.op_type in _OPERATORS and node.domain in _NORMALIZING_DOMAINS:
        return node.op_type
    quotient = _quotient(node)
    if quotient is None or not _is_root_mean_square(quotient[1]):
        return None
    return "LayerNormalization" if _is_centred(quotient[0]) else "RMSNormalization"


def _source(node: ir.Node) -> ir.Value | None:
    """Rule 3: the value that ``node`` passes on, if that is all it does."""
    if node.domain not in STANDARD_DOMAINS:
        return None
    if node.op_type in _UNCHANGED_UNITS:
        return node.inputs[0]
    if node.op_type in _AFFINE:
        computed = [v for v in node.inputs if v is not None and v.const_value is None]
        return computed[0] if len(computed) == 1 else None
    return None


def _quotient(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """``(n, d)`` where ``node`` computes n / d, both of them computed."""
    operands = [v for v in node.inputs if v is not None and v.const_value is None]
    if len(operands) != 2 or node.domain not in STANDARD_DOMAINS:
        return None
    first, second = operands
    if node.op_type == "Div":
        return first, second
    if node.op_type == "Mul":
        for factor, other in ((first, second), (second, first)):
            inverted = _inverted(factor)
            if inverted is not None:
                return other, inverted
    return None


def _inverted(value: ir.Value) -> ir.Value | None:
    """What ``value`` is a constant divided by."""
    node = _maker(value)
    if node is not None and node.op_type == "Reciprocal":
        return node.inputs[0]
    if node is None or node.op_type != "Div" or node.inputs[0] is None:
        return None
    return None if node.inputs[0].const_value is None else node.inputs[1]


def _is_root_mean_square(value: ir.Value) -> bool:
    """Whether ``value`` is ``sqrt(mean(z²) + ε)``."""
    root = _without_constants(value)
    mean = None if root is None or root.op_type != "Sqrt" else _without_constants(root.inputs[0])
    square = None if mean is None or mean.op_type != "ReduceMean" else _maker(mean.inputs[0])
    if square is None:
        return False
    by_itself = square.op_type == "Mul" and square.inputs[0] is square.inputs[1]
    return by_itself or square.op_type == "Pow"


def _is_centred(value: ir.Value) -> bool:
    """Whether ``value`` is something less a mean."""
    difference = _maker(value)
    if difference is None or difference.op_type != "Sub":
        return False
    mean = _maker(difference.inputs[1])
    return mean is not None and mean.op_type == "ReduceMean"


def _without_constants(value: ir.Value | None) -> ir.Node | None:
    """The producer of ``value``, behind casts and additions of constants."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in {"Add", "Cast"}:
            return node
        value = _source(node)
    return None


def _maker(value: ir.Value | None) -> ir.Node | None:
    """The producer of ``value``, behind casts."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type != "Cast":
            return node
        value = node.inputs[0]
    return None
