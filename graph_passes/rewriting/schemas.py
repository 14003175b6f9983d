"""What type each value of a graph has, and which types of a node belong together.

ONNX declares an operator with type variables: a Conv is ``T × T × T → T``, a LayerNormalization
returns its mean in another type than ``T``, a Resize takes its scales in float32 whatever ``T`` is.
Operators that ONNX Runtime adds have no declaration here; all floats of those in :data:`FUSED` are
of one type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import onnx
import onnx_ir as ir

from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS

FUSED: Mapping[str, tuple[int, ...]] = {
    "Attention": (0, 1),
    "BiasGelu": (0,),
    "BiasSoftmax": (0,),
    "EmbedLayerNormalization": (0, 2),
    "FastGelu": (0,),
    "FusedMatMul": (0,),
    "Gelu": (0,),
    "GroupQueryAttention": (0, 1, 2),
    "LayerNormalization": (0,),
    "MatMulNBits": (0,),
    "MultiHeadAttention": (0, 1, 2),
    "QuickGelu": (0,),
    "RotaryEmbedding": (0,),
    "SimplifiedLayerNormalization": (0,),
    "SkipLayerNormalization": (0, 3),
    "SkipSimplifiedLayerNormalization": (0, 3),
}
"""Operators of ONNX Runtime, and which of their outputs have the type of their float inputs."""

_FUSED_DOMAINS = STANDARD_DOMAINS | {"com.microsoft"}
_SCALAR_TYPES = {
    f"tensor({'float' if t is ir.DataType.FLOAT else t.name.lower()})": t for t in ir.DataType
}


class Signature:
    """The declaration of a node's operator, as far as types go.

    Args:
        node: the node.
        opset: of ONNX's own operators.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._node = node
        self._schema = _schema(node.op_type, opset) if node.domain in STANDARD_DOMAINS else None
        self._fused = FUSED.get(node.op_type) if node.domain in _FUSED_DOMAINS else None

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return self._schema is not None or self._fused is not None

    def operand(self, index: int) -> str:
        """The type, or type variable, of an input."""
        if self._schema is None:
            return "T"
        return _formal(self._schema.inputs, index)

    def result(self, index: int) -> str:
        """The type, or type variable, of an output."""
        if self._schema is None:
            return "T" if index in (self._fused or ()) else ""
        return _formal(self._schema.outputs, index)

    def allowed(self, variable: str) -> Sequence[str]:
        """What ``variable`` may be, such as ``tensor(float16)``."""
        if self._schema is None:
            return ("tensor(float)", "tensor(float16)")
        for constraint in self._schema.type_constraints:
            if constraint.type_param_str == variable:
                return constraint.allowed_type_strs
        return (variable,)


def value_types(model: ir.Model) -> dict[ir.Value, ir.DataType]:
    """The element type of each tensor: recorded, or what follows from the operands.

    A value that is missing is no tensor, or nobody knows.
    """
    opset = model.opset_imports.get("", 1)
    types: dict[ir.Value, ir.DataType] = {}
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            if isinstance(value.type, ir.TensorType):
                types[value] = value.type.dtype
            elif value.const_value is not None:
                types[value] = value.const_value.dtype
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        signature = Signature(node, opset)
        for index, value in enumerate(node.outputs):
            found = (
                value.type.dtype
                if isinstance(value.type, ir.TensorType)
                else _derived(node, signature, index, types)
                if value.type is None
                else None
            )
            if found is not None:
                types[value] = found
    return types


def _derived(
    node: ir.Node, signature: Signature, index: int, types: Mapping[ir.Value, ir.DataType]
) -> ir.DataType | None:
    if not signature.known:
        return None
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        return ir.DataType.FLOAT if value is None else value.as_tensor().dtype
    for name, carried in (("then_branch", 0), ("body", int(node.op_type == "Loop"))):
        if name in node.attributes:
            inner = node.attributes[name].as_graph().outputs[index + carried]
            return inner.dtype if isinstance(inner.type, ir.TensorType) else None
    variable = signature.result(index)
    for position, operand in enumerate(node.inputs):
        if operand is not None and operand in types and signature.operand(position) == variable:
            return types[operand]
    choices = signature.allowed(variable)
    return _SCALAR_TYPES.get(choices[0]) if len(choices) == 1 else None


@cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _formal(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """The type of a formal parameter; the last one may stand for many."""
    if not formals:
        return ""
    return formals[min(index, len(formals) - 1)].type_str
