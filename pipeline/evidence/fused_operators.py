"""Write the fused operators of ONNX Runtime as the operators of ONNX that they stand for.

Optimized models have them, domain ``com.microsoft``; ONNX tells neither their shapes nor their
gradients. Those that are not listed here are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compress_onnx.pipeline.evidence.opset import opset_of

DOMAIN = "com.microsoft"

Attribute = int | float | list[int]


def write_out_fused(proto: onnx.ModelProto) -> None:
    """Replace the nodes of the main graph that can be written out, in place; opset 17 or later."""
    nodes: list[onnx.NodeProto] = []
    opset = opset_of(proto)
    for node in proto.graph.node:
        write = _WRITTEN_OUT.get(node.op_type) if _is_fused(node) else None
        if write is None:
            nodes.append(node)
            continue
        writer = _Writer(node, opset)
        write(writer)
        nodes.extend(writer.nodes)
        proto.graph.initializer.extend(writer.constants)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _is_fused(node: onnx.NodeProto) -> bool:
    if any(attribute.name.startswith("transBatch") and attribute.i for attribute in node.attribute):
        return False  # a product with its batch axis inside is not written out
    # ONNX Runtime knows SimplifiedLayerNormalization in the domain of ONNX, which does not.
    return node.domain == DOMAIN or node.op_type == "SimplifiedLayerNormalization"


class _Writer:
    """Collects the nodes that compute what one fused ``node`` does."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.node = node
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, index: int) -> str:
        """An operand; "" where it was left out."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def output(self, index: int = 0) -> str:
        """A result; "" where nobody reads it."""
        return self.node.output[index] if index < len(self.node.output) else ""

    def attribute(self, name: str, default: float) -> float:
        """A number among the attributes."""
        found = [helper.get_attribute_value(a) for a in self.node.attribute if a.name == name]
        return float(found[0]) if found else default

    def number(self, value: float) -> str:
        """A constant."""
        return self._constant(np.array(value, np.float32))

    def mean(self, x: str) -> str:
        """The mean over the last axis, which is kept."""
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=[-1])
        return self.op("ReduceMean", x, self._constant(np.array([-1])))

    def transposed(self, index: int) -> str:
        """An operand ``[..., M, N]`` as ``[..., N, M]``, whatever its rank."""
        x = self.input(index)
        equation = self.op("Einsum", x)
        self.nodes[-1].attribute.append(helper.make_attribute("equation", "...mn->...nm"))
        return equation

    def _constant(self, array: NDArray[np.generic]) -> str:
        name = self._name("constant")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *operands: str, to: str = "", **attributes: Attribute) -> str:
        """Append a node; returns its result, which is called ``to`` where that is given."""
        result = to or self._name(kind)
        node = helper.make_node(kind, list(operands), [result])
        node.attribute.extend(map(helper.make_attribute, attributes, attributes.values()))
        self.nodes.append(node)
        return result

    def _name(self, stem: str) -> str:
        count = len(self.nodes) + len(self.constants)
        return f"{self.node.output[0]}.{stem}.{count}"


def _with_bias(write: _Writer, index: int = 1) -> str:
    x, bias = write.input(0), write.input(index)
    return write.op("Add", x, bias) if bias else x


def _gelu(write: _Writer) -> None:
    """``x·(1 + erf(x/√2))/2``, of ``x + bias`` where there is a bias."""
    x = _with_bias(write)
    erf = write.op("Erf", write.op("Mul", x, write.number(0.5**0.5)))
    half = write.op("Mul", x, write.number(0.5))
    write.op("Mul", half, write.op("Add", erf, write.number(1)), to=write.output())


def _fast_gelu(write: _Writer) -> None:
    """``x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2``."""
    x = _with_bias(write)
    cube = write.op("Mul", write.op("Mul", x, x), x)
    inner = write.op("Add", x, write.op("Mul", cube, write.number(0.044715)))
    tanh = write.op("Tanh", write.op("Mul", inner, write.number((2 / np.pi) ** 0.5)))
    half = write.op("Mul", x, write.number(0.5))
    write.op("Mul", half, write.op("Add", tanh, write.number(1)), to=write.output())


def _quick_gelu(write: _Writer) -> None:
    """``x·σ(αx)``."""
    x = write.input(0)
    scaled = write.op("Mul", x, write.number(write.attribute("alpha", 1.702)))
    write.op("Mul", x, write.op("Sigmoid", scaled), to=write.output())


def _skip_layer_norm(write: _Writer) -> None:
    """LayerNormalization of ``x + skip + bias``; operands x, skip, γ, β, bias."""
    total = _skipped(write, bias=4)
    norm = [total, write.input(2), *filter(None, [write.input(3)])]
    epsilon = write.attribute("epsilon", 1e-5)
    write.op("LayerNormalization", *norm, to=write.output(), axis=-1, epsilon=epsilon)


def _skip_rms_norm(write: _Writer) -> None:
    """The same without mean and β; operands x, skip, γ, bias."""
    _rms(write, _skipped(write, bias=3), write.input(2))


def _skipped(write: _Writer, bias: int) -> str:
    total = write.op("Add", write.input(0), write.input(1))
    if write.input(bias):
        total = write.op("Add", total, write.input(bias))
    if write.output(3):
        total = write.op("Identity", total, to=write.output(3))
    return total


def _rms_norm(write: _Writer) -> None:
    """``x / √(mean x² + ε) · γ``."""
    _rms(write, write.input(0), write.input(1))


def _rms(write: _Writer, x: str, scale: str) -> None:
    mean = write.mean(write.op("Mul", x, x))
    epsilon = write.number(write.attribute("epsilon", 1e-5))
    root = write.op("Sqrt", write.op("Add", mean, epsilon))
    write.op("Mul", write.op("Div", x, root), scale, to=write.output())


def _fused_matmul(write: _Writer) -> None:
    """``α·A·B``, either operand transposed in its last two axes."""
    a, b = (
        write.transposed(index) if write.attribute(name, 0) else write.input(index)
        for index, name in enumerate(("transA", "transB"))
    )
    product = write.op("MatMul", a, b)
    write.op("Mul", product, write.number(write.attribute("alpha", 1)), to=write.output())


_WRITTEN_OUT: Mapping[str, Callable[[_Writer], None]] = {
    "BiasGelu": _gelu,
    "Gelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedMatMul": _fused_matmul,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
}
