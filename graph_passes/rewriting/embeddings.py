"""Let embedding tables keep integers; rows are decoded as they are read.

A table T [V, H], of which ``Gather`` reads rows, becomes ::

    8 bits    Mul(Cast(Gather(Q, i)), Gather(t, i))         T ≈ diag(t)·Q, Q int8, t [V, 1]
    4 bits    com.microsoft.GatherBlockQuantized(Q, i, s)   blocks of 32 along H, a scale each

What a row becomes depends on no other row. 8 bits take standard operators only.

Rules:

1. Only float32 tables [V, H] take part that nothing but Gathers of rows reads; others have a reason
   (:func:`why_float_table`). So has one too small to be worth the nodes (:data:`LEAST_BYTES`).
2. The value that was read keeps its name, type and shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.factorization.rounding import round_weight
from compress_onnx.graph_passes.factorization.storage import Packed
from compress_onnx.graph_passes.factorization.weight_only import BLOCK, Bits, round_to_nearest
from compress_onnx.graph_passes.rewriting.initializers import Initializers, in_memory, register
from compress_onnx.graph_passes.rewriting.integers import CONTRIB
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS, read

LEAST_BYTES = 1 << 16
"""Of a table in float."""


class EmbeddingsPass(ir.passes.InPlacePass):
    """Rewrite embedding tables.

    Args:
        bits: of a number.
        least_bytes: smaller tables stay as they are.
    """

    def __init__(self, bits: Bits = 8, least_bytes: int = LEAST_BYTES) -> None:
        super().__init__()
        self._bits = bits
        self._least_bytes = least_bytes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every table that can be."""
        names = UniqueNames(value_names(model), separator="_")
        taking = [
            table
            for table, reason in tables(model, self._bits, self._least_bytes).items()
            if reason is None
        ]
        for table in taking:
            _rewrite(table, self._bits, Initializers(names, in_memory))
        if taking and self._bits == 4:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified=bool(taking))


def tables(
    model: ir.Model, bits: Bits = 8, least_bytes: int = LEAST_BYTES
) -> Mapping[ir.Value, str | None]:
    """The tables of ``model``, and why each stays in float; None for one that need not."""
    found: dict[ir.Value, None] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if _reads_rows(node) and (table := node.inputs[0]) is not None and table.const_value:
            found[table] = None
    return {table: why_float_table(table, bits, least_bytes) for table in found}


def why_float_table(table: ir.Value, bits: Bits, least_bytes: int = LEAST_BYTES) -> str | None:
    """Why the initializer ``table`` stays in float; None where it can keep integers (rule 1)."""
    tensor = table.const_value
    assert tensor is not None
    others = [node for node, index in table.uses() if index != 0 or not _reads_rows(node)]
    reason = None
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        reason = "it is no float32 matrix"
    elif tensor.nbytes < least_bytes:
        reason = "it is small"
    elif table.is_graph_input() or table.is_graph_output():
        reason = "it is an input or output of the model"
    elif others:
        reason = f"{others[0].op_type} {others[0].name!r} reads it too"
    elif bits == 4 and int(tensor.shape.numpy()[1]) % BLOCK:
        reason = f"its rows are no blocks of {BLOCK}"
    elif not np.isfinite(cast("Float32", read(tensor))).all():
        reason = "it has NaN or infinite values"
    return reason


def _reads_rows(node: ir.Node) -> bool:
    return (
        node.op_type == "Gather"
        and node.domain in STANDARD_DOMAINS
        and node.attributes.get_int("axis", 0) == 0
    )


def _rewrite(table: ir.Value, bits: Bits, initializers: Initializers) -> None:
    assert table.const_value is not None
    assert table.graph is not None
    numbers, scale, stored = _rounded(cast("Float32", read(table.const_value)), bits)
    kept = initializers.keep(table, "scale", scale, stored)
    name = initializers.names(f"{table.name}.integers")
    operands = [
        register(table.graph, ir.tensor(numbers, name=name)),
        initializers.place(table, kept, {}),
    ]
    for gather in [node for node, _ in table.uses()]:
        nodes = list(_reading(gather, operands, bits, initializers.names))
        old, new = gather.outputs[0], nodes[-1].outputs[0]
        new.type, new.shape = old.type, old.shape
        assert gather.graph is not None
        ir.convenience.replace_nodes_and_values(gather.graph, gather, [gather], nodes, [old], [new])


def _rounded(table: Float32, bits: Bits) -> tuple[Array, Array, Packed | None]:
    """The integers and scales of a table [V, H] as the graph reads them, and as the file does."""
    if bits == 8:
        by_row = round_weight(table.T)
        return np.ascontiguousarray(by_row.numbers.T), by_row.scale[:, None], None
    blocks = round_to_nearest(table.T.astype(np.float64), None, bits)
    numbers, scale = np.ascontiguousarray(blocks.numbers.T), blocks.stored_scale  # [V, H]
    halves = numbers[:, ::2] | (numbers[:, 1::2] << 4)
    return halves, blocks.scale.T, scale and scale.transposed()


def _reading(
    gather: ir.Node, operands: Sequence[ir.Value], bits: Bits, names: UniqueNames
) -> Iterator[ir.Node]:
    """The nodes that read rows in place of ``gather``."""
    numbers, scale = operands
    indices = gather.inputs[1]

    def node(
        op_type: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: int
    ) -> ir.Node:
        name = names(f"{gather.name}.{op_type}")
        return ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes),
            outputs=[ir.Value(name=names(f"{name}.output"))],
            name=name,
        )

    if bits == 4:
        block = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        yield node("GatherBlockQuantized", [numbers, indices, scale], CONTRIB, **block)
        return
    rows, steps = node("Gather", [numbers, indices]), node("Gather", [scale, indices])
    floats = node("Cast", rows.outputs, to=int(ir.DataType.FLOAT))
    yield from (rows, steps, floats)
    yield node("Mul", [floats.outputs[0], steps.outputs[0]])
