"""What recovery may train in a compressed model: what compression changed, biases and norm scales.

Rules:

1. A factor is the weight of a MatMul or Gemm that :mod:`graph_passes.rewriting.low_rank` wrote.
   Networks that lost neurons (:mod:`graph_passes.rewriting.neurons`), and the neurons of a float
   branch (:mod:`graph_passes.rewriting.outliers`), have all their weights and biases trained.
2. A vector is a weight with one axis longer than one that an Add, a Mul, a Gemm or a normalization
   reads as a bias or a scale.
3. Only float32 weights of the main graph count: gradients of smaller types overflow, and nothing
   differentiates through the bodies of If, Loop and Scan.
4. What is also a graph input or output is not a weight to train.
5. Factors that the file holds rounded are not trained: a small step would round to none at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Float32
from compress_onnx.graph_passes.factorization.balance import balanced
from compress_onnx.graph_passes.rewriting.integers import FLOAT_PROPERTY
from compress_onnx.graph_passes.sites.linear_site import NEURONS_PROPERTY, SITE_PROPERTY

_PRODUCTS = {"MatMul", "Gemm"}
_WITH_VECTORS = {
    "Add",
    "Mul",
    "Gemm",
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
}


def factors(model: ir.Model) -> list[ir.Value]:
    """The factors of ``model`` in graph order, each once."""
    found = [value for node in _factor_nodes(model) for value in _weights(node)]
    return list(dict.fromkeys(found))


def network_weights(model: ir.Model) -> list[ir.Value]:
    """Weights and biases of networks that lost neurons or have a float branch, each once."""
    found = [
        value
        for node in model.graph
        if not {NEURONS_PROPERTY, FLOAT_PROPERTY}.isdisjoint(node.metadata_props)
        for value in node.inputs
        if value is not None and is_trainable(value) and not _is_number(value)
    ]
    return list(dict.fromkeys(found))


def has_rounded_factors(model: ir.Model) -> bool:
    """Whether the file holds factors of ``model`` rounded (rule 5)."""
    return any(
        node.op_type == "Cast" and SITE_PROPERTY in node.metadata_props for node in model.graph
    )


def vectors(model: ir.Model) -> list[ir.Value]:
    """The biases and norm scales of ``model`` in graph order, each once."""
    found = [
        value
        for node in model.graph
        if node.op_type in _WITH_VECTORS
        for value in node.inputs
        if value is not None and is_trainable(value) and _is_vector(value)
    ]
    return list(dict.fromkeys(found))


def balanced_factors(model: ir.Model) -> dict[ir.Value, Float32]:
    """The numbers of all factors; pairs that belong to each other alone are balanced."""
    arrays = {value: array_of(value) for value in factors(model)}
    pairs = list(dict.fromkeys(_pairs(model)))
    readers = Counter(value for pair in pairs for value in pair)
    for left, right in pairs:
        if readers[left] == readers[right] == 1:
            new = balanced(arrays[left], arrays[right])
            arrays[left], arrays[right] = (array.astype(np.float32) for array in new)
    return arrays


def array_of(value: ir.Value) -> Float32:
    """The numbers of the float32 initializer ``value``."""
    assert value.const_value is not None
    return np.array(value.const_value.numpy(), np.float32)


def set_array(value: ir.Value, array: Float32) -> None:
    """Give the float32 initializer ``value`` new numbers."""
    value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)


def is_trainable(value: ir.Value) -> bool:
    """Rules 3 and 4."""
    return (
        value.is_initializer()
        and not value.is_graph_input()
        and not value.is_graph_output()
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
    )


def _pairs(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The operands (left, right) whose product is the weight: the chain down, up."""
    for node in _factor_nodes(model):
        for value in node.inputs:
            first = value.producer() if value is not None else None
            if first is None or not _same_site(first, node):
                continue
            for down in _weights(first):
                for up in _weights(node):
                    on_left = node.inputs[0] is up
                    yield (up, down) if on_left else (down, up)


def _same_site(first: ir.Node, node: ir.Node) -> bool:
    site = node.metadata_props[SITE_PROPERTY]
    return first.op_type in _PRODUCTS and first.metadata_props.get(SITE_PROPERTY) == site


def _factor_nodes(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type in _PRODUCTS and SITE_PROPERTY in node.metadata_props
    ]


def _weights(node: ir.Node) -> list[ir.Value]:
    """The factor that ``node`` multiplies by (a Gemm's third operand is its bias)."""
    return [value for value in node.inputs[:2] if value is not None and is_trainable(value)]


def _is_number(value: ir.Value) -> bool:
    assert value.const_value is not None
    return value.const_value.size == 1


def _is_vector(value: ir.Value) -> bool:
    assert value.const_value is not None
    return sum(size > 1 for size in value.const_value.shape.numpy()) == 1
