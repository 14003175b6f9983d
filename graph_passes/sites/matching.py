"""Read one node as a linear site, or say why it is none.

Rules:

1. MatMul with a matrix on the right is a site, for x of any number of dimensions; with a matrix on
   the left or a stack of them, for x of known rank, at least two (MatMul takes a vector for a row
   on the left and for a column on the right, and drops that axis from the output).
2. Gemm is a site with any transA, transB, alpha and beta and its weight on either side; C may be
   missing, a bias or computed.
3. An Add right behind a MatMul is its bias if its other operand, on either side, is an initializer
   with one element for each of the N outputs (or one for all; for each matrix of a stack, or the
   same for all), and the MatMul has no other reader.
   Any other Add (a residual, a position embedding) is not touched.
4. Linear layers in other clothes are left whole, with their reason: Einsum, 1×1 Conv, fused and
   quantized operators. So is a factor that this project wrote.
"""

from __future__ import annotations

import json

import onnx_ir as ir

from compress_onnx.graph_passes.sites.linear_site import (
    SIBLINGS_PROPERTY,
    SITE_PROPERTY,
    Bias,
    LinearSite,
)
from compress_onnx.graph_passes.sites.naming import group_of, module_path
from compress_onnx.graph_passes.sites.weights import COMPUTED, STANDARD_DOMAINS, Weight, resolve

_STANDARD_PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "Einsum"})
_FUSED_PRODUCTS = frozenset(
    {
        "Attention",
        "DynamicQuantizeMatMul",
        "FusedGemm",
        "FusedMatMul",
        "GemmFastGelu",
        "GemmFloat8",
        "MatMulBnb4",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MoE",
        "QAttention",
        "QGemm",
        "QMoE",
    }
)
_BOTH = "both operands are weights: constant folding would remove the product"


def is_product(node: ir.Node) -> bool:
    """Whether ``node`` multiplies matrices: it becomes a site or gets a reason."""
    if node.domain in STANDARD_DOMAINS:
        return node.op_type in _STANDARD_PRODUCTS or _is_pointwise_convolution(node)
    return node.domain == "com.microsoft" and node.op_type in _FUSED_PRODUCTS


def match(node: ir.Node) -> LinearSite | str:
    """Read the product ``node`` as a linear site, or say why it is none."""
    reason = _left_whole(node)
    if reason is not None:
        return reason
    if len(node.inputs) < 2 or None in node.inputs[:2]:
        return "an operand is missing"
    return _match_matmul(node) if node.op_type == "MatMul" else _match_gemm(node)


def _left_whole(node: ir.Node) -> str | None:
    """Rule 4."""
    if SITE_PROPERTY in node.metadata_props:
        return "already a low-rank factor"
    if node.domain not in STANDARD_DOMAINS:
        return f"{node.domain}.{node.op_type}: a fused or quantized operator is left whole"
    if node.op_type == "Einsum":
        return f"Einsum {_equation(node)!r}: only MatMul and Gemm are rewritten"
    if node.op_type == "Conv":
        return "Conv with a kernel of one element: convolutions are left whole"
    if node.op_type not in {"MatMul", "Gemm"}:
        return f"{node.op_type}: quantized weights are not factored"
    return None


def _match_matmul(node: ir.Node) -> LinearSite | str:
    weight, on_left = _weight_of(node, transpose_left=False, transpose_right=False)
    if isinstance(weight, str):
        return weight
    if on_left or weight.stacked:
        shape = _operand(node, 1 if on_left else 0).shape
        if shape is None or len(shape) < 2:
            where = "on the left of" if on_left else "a stack of matrices times"
            return f"weight {where} an input that is a vector, or of unknown rank"
    bias = _bias_behind(node, weight, column=on_left)
    siblings: dict[str, str] = json.loads(node.metadata_props.get(SIBLINGS_PROPERTY, "{}"))
    name = module_path(node, (weight.initializer, bias.value if bias else None))
    return LinearSite(
        name,
        group_of(next(iter(siblings), name)),
        node,
        weight,
        bias,
        on_left=on_left,
        transpose_input=on_left,
        siblings=siblings,
    )


def _match_gemm(node: ir.Node) -> LinearSite | str:
    transpose_left = bool(node.attributes.get_int("transA", 0))
    transpose_right = bool(node.attributes.get_int("transB", 0))
    weight, on_left = _weight_of(
        node, transpose_left=transpose_left, transpose_right=transpose_right
    )
    if isinstance(weight, str):
        return weight
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    bias = None
    if addend is not None and _is_bias(addend, weight, column=on_left):
        bias = Bias(addend, node, 2)
    name = module_path(node, (weight.initializer, addend))
    return LinearSite(
        name,
        group_of(name),
        node,
        weight,
        bias,
        on_left=on_left,
        transpose_input=not transpose_right if on_left else transpose_left,
        alpha=node.attributes.get_float("alpha", 1.0),
        beta=node.attributes.get_float("beta", 1.0),
    )


def _weight_of(
    node: ir.Node, *, transpose_left: bool, transpose_right: bool
) -> tuple[Weight | str, bool]:
    """The weight as [K, N], or the reason why there is none; and whether it is on the left."""
    right = resolve(_operand(node, 1), transposed=transpose_right)
    left = resolve(_operand(node, 0), transposed=not transpose_left)
    if isinstance(right, Weight):
        return (right if isinstance(left, str) else _BOTH), False
    if isinstance(left, Weight):
        return left, True
    return (left if right == COMPUTED else right), False


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _bias_behind(node: ir.Node, weight: Weight, *, column: bool) -> Bias | None:
    """Rule 3: the Add behind a MatMul, if it adds a bias to the outputs of ``weight``."""
    output = node.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output():
        return None
    (add, index), *_ = uses
    if add.op_type != "Add" or add.domain not in STANDARD_DOMAINS or add.graph is not node.graph:
        return None
    other = add.inputs[1 - index]
    if other is None or not _is_bias(other, weight, column=column):
        return None
    return Bias(other, add, 1 - index)


def _is_bias(value: ir.Value, weight: Weight, *, column: bool) -> bool:
    """Whether ``value`` varies along the outputs only, the last axis or the one before it.

    And along a stack of matrices.
    """
    if not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return False
    shape = tuple(int(size) for size in value.const_value.shape.numpy())
    features = weight.shape[1]
    full = (*(weight.leading or (1,)), *((features, 1) if column else (1, features)))
    if len(shape) > len(full):
        return False
    return all(size in {1, most} for size, most in zip(shape[::-1], full[::-1], strict=False))


def _is_pointwise_convolution(node: ir.Node) -> bool:
    if node.op_type != "Conv" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    shape = node.inputs[1].shape
    return shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])


def _equation(node: ir.Node) -> str:
    return node.attributes.get_string("equation", "") or ""
