"""Bring numbers that stand for infinity into the range of float16, in float32 still.

A mask holds −3.4e38 or −1e9 where attention must not look. As float16 that is −∞, and a row that is
masked as a whole becomes NaN. Any number whose exponential is 0 masks as well.

Rules:

1. A finite number beyond :data:`INFINITE` becomes :data:`BOUND`, of its sign.
2. Only in a constant that is added, multiplied, selected or moved by everything that reads it. In
   any other place it is a number: what computes with it stays in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.rewriting.initializers import register
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS, read

INFINITE = 1e8

BOUND = 8192.0
"""e⁻⁸¹⁹² is 0 in float32 too, and three masks add up to less than half of the largest float16."""

MOVING = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that only move numbers."""

_MASKING = MOVING | {"Add", "Cast", "Mul", "Sub", "Trilu", "Where"}


class BoundMasksPass(ir.passes.InPlacePass):
    """Bound the masks of a model; all constants become initializers on the way."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Needs value names that are unique in the model."""
        lifted = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        modified = lifted(model).modified
        names = UniqueNames(value_names(model), separator="_")
        for graph in model.graphs():
            for value in list(graph.initializers.values()):
                if (array := plain_floats(value)) is None or not _stands_for_infinity(array):
                    continue
                if all(node.op_type in _MASKING for node, _ in value.uses()):
                    bounded = ir.tensor(_bounded(array), name=names(f"{value.name}.bounded"))
                    value.replace_all_uses_with(register(graph, bounded))
                    modified = True
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            fill = filling(node)
            if fill is not None and _stands_for_infinity(fill):
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_bounded(fill)))
                modified = True
        return ir.passes.PassResult(model, modified)


def plain_floats(value: ir.Value) -> Array | None:
    """The numbers of a float32 initializer that nobody can override or fetch."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or not value.is_initializer():
        return None
    if value.is_graph_input() or value.is_graph_output():
        return None
    return read(tensor)


def filling(node: ir.Node) -> Array | None:
    """The float32 number that a ConstantOfShape fills with."""
    if node.op_type != "ConstantOfShape" or node.domain not in STANDARD_DOMAINS:
        return None
    attribute = node.attributes.get("value")
    if attribute is None:
        return np.zeros(1, np.float32)
    tensor = attribute.as_tensor()
    return read(tensor) if tensor.dtype == ir.DataType.FLOAT else None


def plain_constant(value: ir.Value) -> bool:
    """Whether ``value`` is an initializer that nobody can override or fetch."""
    overridable = value.is_graph_input() or value.is_graph_output()
    return value.is_initializer() and value.const_value is not None and not overridable


def _stands_for_infinity(array: Array) -> bool:
    return bool(np.any(np.isfinite(array) & (np.abs(array) >= INFINITE)))


def _bounded(array: Array) -> Array:
    beyond = np.isfinite(array) & (np.abs(array) >= INFINITE)
    return np.where(beyond, np.sign(array) * np.float32(BOUND), array).astype(np.float32)
