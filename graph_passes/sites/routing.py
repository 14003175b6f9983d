"""Where the rows of a value come from: back to what a router sent, through what acts row by row.

A mixture of experts that is written densely gives each expert all tokens, with zeros for those that
the router sent elsewhere (or for places that no token took). The first layer of an expert sees the
zeros themselves, a second one what the first makes of them: ``f(0)``, the same for all of them, and
not zero where there is a bias. Which rows these are can be read off the value at which f starts.

Rules:

1. f may be made of operators that act on each row (the last axis) on its own, whatever the row:
   products with a weight on the right, and what acts on each number.
2. f starts at one value: branches that part (gated activations) have to meet again.
3. The search ends at any other operator, such as the product or the Where with which tokens were
   sent: its other operand is computed and leads elsewhere.
"""

from __future__ import annotations

import onnx_ir as ir

from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS

_ROW_BY_ROW = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
    }
)


def row_source(value: ir.Value) -> ir.Value:
    """The earliest value of which each row of ``value`` is a function of the same row."""
    producer = value.producer()
    if producer is None or producer.graph is None:
        return value
    order = {node: place for place, node in enumerate(producer.graph)}

    def place(found: ir.Value) -> int:
        node = found.producer()
        return -1 if node is None else order.get(node, -1)

    source, frontier = value, {value}
    while operands := _operands(latest := max(frontier, key=place)):
        frontier = (frontier - {latest}) | operands
        if len(frontier) == 1:
            (source,) = frontier
    return source


def _operands(value: ir.Value) -> set[ir.Value]:
    """What the rows of ``value`` are computed from (rule 1); nothing if not row by row."""
    node = value.producer()
    if node is None or node.domain not in STANDARD_DOMAINS or node.op_type not in _ROW_BY_ROW:
        return set()
    computed = {v for v in node.inputs if v is not None and not _is_constant(v)}
    if node.op_type == "MatMul" and node.inputs[0] not in computed:
        return set()  # a weight on the left mixes rows
    if node.op_type == "MatMul" and len(computed) > 1:
        return set()
    return computed


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")
