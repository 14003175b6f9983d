"""Turn a float32 model into one that computes with float16 where that is good enough.

Each node computes in one of the two types (:mod:`graph_passes.rewriting.half_rules` has the reasons
to stay), each value has the type of the node that makes it, and a Cast stands where they differ::

    input (float32) → Cast → MatMul → Add → Cast → Exp (float32) → Cast → MatMul → Cast → output

Rules:

1. Inputs and outputs of every graph, nested ones included, keep their names and types.
2. A value is cast once, in the graph that makes it, however many nodes read it.
3. A weight that both kinds of nodes read is there twice; nothing is rounded for a float32 node.
4. A number below the smallest float16 becomes the smallest one of its sign: nothing that divides
   becomes 0. What is out of range on the other side has kept its node in float32.
5. A Cast that the model has already goes where it has become one from a type to itself.
6. Integers, bools and doubles are left alone, and so are the bodies of functions.

ONNX Runtime's ``onnxruntime.transformers.float16`` does the same for a model that may be turned as
a whole, and is the rival of ``optimize``. Where nodes stay in float32 it does not serve (1.31):
between two of them it rounds to float16, so that the chain overflows after all; a value read twice
by one of them, and any of them inside a nested graph, gives a graph that does not load; it casts
nothing that an operator of ONNX Runtime's own has made; and its nodes are not in order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.rewriting.bound_masks import filling, plain_constant
from compress_onnx.graph_passes.rewriting.half_rules import AS_IT_IS, LARGEST, float_reasons
from compress_onnx.graph_passes.rewriting.initializers import register
from compress_onnx.graph_passes.rewriting.schemas import Signature, value_types
from compress_onnx.graph_passes.sites.naming import UniqueNames, value_names
from compress_onnx.graph_passes.sites.weights import read

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


class HalfPass(ir.passes.InPlacePass):
    """Let the nodes compute with float16 that may.

    Args:
        floats: names of further nodes that stay in float32, and why.

    Attributes:
        floats: after the call, why each node stays in float32 that does, by name.
    """

    def __init__(self, floats: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.floats: Mapping[str, str] = floats or {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Needs names that are unique in the model (:class:`CanonicalizePass`)."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        types = value_types(model)
        reasons = float_reasons(model, types, self.floats)
        _Halver(model, types, reasons).halve()
        nodes = ir.traversal.RecursiveGraphIterator(model.graph)
        self.floats = {node.name or "": reasons[node] for node in nodes if node in reasons}
        return ir.passes.PassResult(model, modified=True)


def to_half(array: Array) -> Array:
    """``array`` in float16; finite numbers stay finite, and none but 0 becomes 0 (rule 4)."""
    bounded = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array)
    halves = bounded.astype(np.float16)
    lost = (halves == 0) & (array != 0)
    halves[lost] = np.copysign(_SMALLEST, array[lost])
    return halves


class _Halver:
    """One call of the pass."""

    def __init__(
        self,
        model: ir.Model,
        types: Mapping[ir.Value, ir.DataType],
        floats: Mapping[ir.Node, str],
    ) -> None:
        self._model, self._types, self._floats = model, types, floats
        self._opset = model.opset_imports.get("", 1)
        self._names = UniqueNames(value_names(model), separator="_")
        self._halves: set[ir.Value] = set()
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def halve(self) -> None:
        """Find what becomes float16, then rewrite operands, outputs and Casts."""
        nodes = [
            node
            for node in ir.traversal.RecursiveGraphIterator(self._model.graph)
            if any(self._types.get(v) == _FLOAT for v in (*node.inputs, *node.outputs) if v)
        ]
        for node in nodes:
            if node not in self._floats:
                self._halves.update(v for i, v in enumerate(node.outputs) if self._turns(node, i))
        for value in self._halves:
            value.type = ir.TensorType(_HALF)
        for node in nodes:
            self._rewrite(node)
        for graph in list(self._model.graphs()):
            self._restore_outputs(graph)
        for node in nodes:
            if node.op_type == "Cast":
                self._drop_if_idle(node)

    def _turns(self, node: ir.Node, index: int) -> bool:
        """Whether an output of a float16 node becomes float16."""
        if self._types.get(node.outputs[index]) != _FLOAT:
            return False
        if node.op_type in {"Cast", "ConstantOfShape"}:
            return True
        signature = Signature(node, self._opset)
        variables = {
            signature.operand(i) for i, v in enumerate(node.inputs) if self._is_float(v)
        } - {"tensor(float)"}
        return signature.result(index) in variables

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and self._types.get(value) == _FLOAT

    def _rewrite(self, node: ir.Node) -> None:
        half = node not in self._floats
        if half and node.op_type == "Cast" and node.outputs[0] in self._halves:
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
        if half and (fill := filling(node)) is not None:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(to_half(fill)))
        if node.op_type in AS_IT_IS:
            return
        signature = Signature(node, self._opset)
        for index, value in enumerate(node.inputs):
            if value is None or not self._is_float(value):
                continue
            wanted = _HALF if half and signature.operand(index) != "tensor(float)" else _FLOAT
            if wanted != (_HALF if value in self._halves else _FLOAT):
                node.replace_input_with(index, self._as(value, wanted))

    def _as(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """``value`` in another type (rules 2 and 3)."""
        if (value, kind) not in self._made:
            if plain_constant(value):
                self._made[value, kind] = self._copy(value)
            else:
                self._made[value, kind] = self._cast(value, kind)
        return self._made[value, kind]

    def _copy(self, weight: ir.Value) -> ir.Value:
        assert weight.graph is not None
        assert weight.const_value is not None
        halves = to_half(read(weight.const_value))
        return register(weight.graph, ir.tensor(halves, name=self._names(f"{weight.name}.half")))

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'half' if kind == _HALF else 'float'}"
        output = ir.Value(name=self._names(name), shape=value.shape, type=ir.TensorType(kind))
        node = ir.Node(
            "",
            "Cast",
            [value],
            ir.convenience.convert_attributes({"to": int(kind)}),
            outputs=[output],
            name=self._names(f"{name}.cast"),
        )
        producer = value.producer()
        graph = value.graph if producer is None else producer.graph
        assert graph is not None
        if producer is None:
            graph.insert_before(graph[0], [node])
        else:
            graph.insert_after(producer, [node])
        return output

    def _restore_outputs(self, graph: ir.Graph) -> None:
        """Rule 1: the Cast of an output gets its name."""
        for index, value in enumerate(graph.outputs):
            if value in self._halves:
                name, outside = value.name, self._as(value, _FLOAT)
                value.name, outside.name = self._names(f"{name}.inner"), name
                graph.outputs[index] = outside

    def _drop_if_idle(self, cast: ir.Node) -> None:
        """Rule 5."""
        source, output = cast.inputs[0], cast.outputs[0]
        if source is None or output.is_graph_output():
            return
        kind = _HALF if source in self._halves else self._types.get(source)
        if kind == cast.attributes["to"].as_int():
            assert cast.graph is not None
            output.replace_all_uses_with(source)
            cast.graph.remove(cast, safe=True)
