"""Let layers multiply integers.

With the scales of :mod:`graph_passes.factorization.rounding`, a layer ``y = x·W + b`` becomes, by
form,

==============  ====================================================================================
``fused``       ``QuantizeLinear`` → ``com.microsoft.MatMulIntegerToFloat`` with the bias inside
``standard``    ``QuantizeLinear`` → ``MatMulInteger`` → ``Cast`` → ``Mul`` (→ ``Add``)
``dynamic``     ``DynamicQuantizeLinear`` → ``MatMulInteger`` → ``Cast`` → ``Mul`` (→ ``Add``)
``qdq``         ``QuantizeLinear`` → ``DequantizeLinear`` → ``MatMul`` of a ``DequantizeLinear``
==============  ====================================================================================

The output is a float in each of them: it is not rounded a second time. ``fused`` is what ONNX
Runtime's CPU provider runs fastest; ``dynamic`` takes the scale of the inputs from the batch, so
that what a sample becomes depends on its neighbours; ``qdq`` is what OpenVINO, TensorRT and QNN
read.

Rules:

1. Only float32 layers with a plain weight on the right take part; others have a reason
   (:func:`why_float`).
2. Layers of one graph that read one value share its integers.
3. The rewritten value keeps its name, type and shape; the product tells what the layer told, and
   of its numbers (:mod:`graph_passes.rewriting.told`).
4. Numbers are computed for the whole model before the graph changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array, Float32
from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization.rounding import (
    LIMIT,
    InputScale,
    RoundedWeight,
    round_weight,
)
from compress_onnx.graph_passes.rewriting.initializers import register
from compress_onnx.graph_passes.rewriting.told import told_of, with_numbers
from compress_onnx.graph_passes.sites.find import find_sites
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import read

IntegerForm = Literal["fused", "standard", "dynamic", "qdq"]

CONTRIB = "com.microsoft"
QDQ_OPSET = 13
FLOAT_PROPERTY = "compress_onnx.float"
"""Metadata of a node that stays in float, whoever rounds the others."""


class IntegersPass(ir.passes.InPlacePass):
    """Rewrite layers so that they multiply integers.

    Args:
        scales: of the inputs, by the name of the layer; the layers that take part.
        form: which operators.
        limit: the largest integer of a weight.
        damage: what that costs the outputs, as predicted, by the name of the layer.
    """

    def __init__(
        self,
        scales: Mapping[str, InputScale],
        form: IntegerForm = "fused",
        limit: int = LIMIT,
        *,
        damage: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self._damage = damage or {}
        self._scales = scales
        self._form = form
        self._limit = limit

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every layer that has a scale.

        Raises:
            RequestError: the model lacks one of them, it has to stay in float, or the model's opset
                is too old for the form; nothing was changed then.
        """
        table = find_sites(model)
        if self._form == "qdq" and table.opset < QDQ_OPSET:
            raise RequestError(
                f"QDQ with a scale for each column needs opset {QDQ_OPSET}, the model has "
                f"{table.opset}: convert it, or use another form"
            )
        sites = {site.name: site for site in table.sites}
        for name in self._scales:
            reason = why_float(sites[name]) if name in sites else "the model lacks it"
            if reason is not None:
                raise RequestError(f"{name} cannot multiply integers: {reason}")
        rounded = {
            name: round_weight(site.weight.array(), self._limit, site.alpha)
            for name, site in sites.items()
            if name in self._scales
        }
        names = UniqueNames(value_names(model), separator="_")
        inputs: dict[tuple[object, ...], _Integers] = {}
        for name, scale in self._scales.items():
            site = sites[name]
            key = site.input, site.node.graph, scale
            if key not in inputs:
                inputs[key] = _Writer(site, names).integers(scale, self._form)
            told = with_numbers(told_of(site.node), "int8", self._damage.get(name))
            _Writer(site, names, told).rewrite(inputs[key], rounded[name], self._form)
        if self._form == "fused" and self._scales:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified=bool(self._scales))


def why_float(site: LinearSite) -> str | None:
    """Why ``site`` cannot multiply integers; None where it can (rule 1)."""
    if FLOAT_PROPERTY in site.node.metadata_props:
        return "it holds what integers would lose"
    if site.weight.initializer.dtype != ir.DataType.FLOAT:
        return "its weight is no float32"
    if site.on_left or site.transpose_input or site.weight.stacked:
        return "its weight is on the left of its input, or a stack"
    weight = site.weight.array()
    if not np.isfinite(weight).all():
        return "its weight has NaN or infinite values"
    return None


@dataclass(frozen=True)
class _Integers:
    """The integers of an input in the graph, with what decodes them."""

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class _Writer:
    """Writes the nodes that one layer becomes, in front of it."""

    def __init__(
        self, site: LinearSite, names: UniqueNames, told: Mapping[str, str] | None = None
    ) -> None:
        assert site.node.graph is not None
        self._site = site
        self._told = told or {}
        self._graph = site.node.graph
        self._names = names
        self._nodes: list[ir.Node] = []

    def integers(self, scale: InputScale, form: IntegerForm) -> _Integers:
        """Round the input, in front of the first layer that reads it."""
        x = self._site.input
        made: _Integers
        if form == "dynamic":
            node = self._node("DynamicQuantizeLinear", [x], outputs=3, base=f"{x.name}.integers")
            made = _Integers(*node.outputs)
        else:
            step = self._constant(np.asarray(scale.scale), f"{x.name}.scale")
            zero = self._constant(np.asarray(scale.zero_point), f"{x.name}.zero_point")
            node = self._node("QuantizeLinear", [x, step, zero], base=f"{x.name}.integers")
            made = _Integers(node.outputs[0], step, zero)
        self._graph.insert_before(_first_reader(self._site), self._nodes)
        self._nodes = []
        return made

    def rewrite(self, inputs: _Integers, weight: RoundedWeight, form: IntegerForm) -> None:
        """Replace the layer, and its bias where that can be taken inside."""
        site = self._site
        owner = site.weight.initializer.name
        numbers = self._constant(weight.numbers, f"{owner}.integers")
        scale = self._constant(weight.scale, f"{owner}.scale")
        last, bias = site.node, None
        if form == "fused":
            operands = [inputs.numbers, numbers, inputs.scale, scale, inputs.zero_point, None]
            bias = self._bias()
            if bias is not None and site.bias is not None:
                operands.append(bias)
                last = site.bias.node
            output = self._node("MatMulIntegerToFloat", operands, domain=CONTRIB).outputs[0]
        elif form == "qdq":
            x = self._node("DequantizeLinear", [inputs.numbers, inputs.scale, inputs.zero_point])
            w = self._node("DequantizeLinear", [numbers, scale], {"axis": 1})
            output = self._node("MatMul", [x.outputs[0], w.outputs[0]]).outputs[0]
        else:
            product = self._node("MatMulInteger", [inputs.numbers, numbers, inputs.zero_point])
            floats = self._node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
            both = self._node("Mul", [inputs.scale, scale]).outputs[0]
            output = self._node("Mul", [floats.outputs[0], both]).outputs[0]
        if bias is None and site.node.op_type == "Gemm" and len(site.node.inputs) > 2:
            output = self._gemm_addend(output)
        old = last.outputs[0]
        output.type, output.shape = old.type, old.shape
        replaced = [last] if last is site.node else [site.node, last]
        ir.convenience.replace_nodes_and_values(
            self._graph, last, replaced, self._nodes, [old], [output]
        )

    def _bias(self) -> ir.Value | None:
        """The bias as one number an output, where there is one; beta is folded in."""
        bias = self._site.bias
        if bias is None or bias.value.const_value is None:
            return None
        numbers = cast("Float32", read(bias.value.const_value).reshape(-1))
        shape, result = bias.value.const_value.shape, self._site.node.outputs[0].shape
        adds_axes = len(shape) > 1 and (result is None or len(shape) > len(result))
        if numbers.size != self._site.out_features or numbers.dtype != np.float32 or adds_axes:
            return None
        return self._constant(
            (self._site.beta * numbers).astype(np.float32), f"{bias.value.name}.integers"
        )

    def _gemm_addend(self, product: ir.Value) -> ir.Value:
        """Add what the Gemm added."""
        addend = self._site.node.inputs[2]
        if addend is None:
            return product
        if self._site.beta != 1:
            beta = self._constant(np.asarray(self._site.beta, np.float32), f"{addend.name}.beta")
            addend = self._node("Mul", [addend, beta]).outputs[0]
        return self._node("Add", [product, addend]).outputs[0]

    def _constant(self, array: Array, name: str) -> ir.Value:
        owner = self._site.weight.initializer.graph
        assert owner is not None
        return register(owner, ir.tensor(array, name=self._names(name)))

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        base: str = "",
    ) -> ir.Node:
        base = base or f"{self._site.node.name}.{op_type}"
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(dict(attributes or {})),
            outputs=[ir.Value(name=self._names(base)) for _ in range(outputs)],
            name=self._names(f"{base}.node"),
            metadata_props=dict(self._told) if "MatMul" in op_type else None,
        )
        self._nodes.append(node)
        return node


def _first_reader(site: LinearSite) -> ir.Node:
    """The first node of the graph of ``site`` that reads its input."""
    graph = site.node.graph
    assert graph is not None
    readers = {node for node, _ in site.input.uses() if node.graph is graph}
    return next(node for node in graph if node in readers)
