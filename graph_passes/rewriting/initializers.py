"""New initializers beside a weight, plain or packed.

A factor that the file holds in a smaller type is decoded by nodes in front of the graph::

    float16      Cast
    int8, int4   Cast to float32, Mul by the scales; a Cast where the weight's type is another one

They read initializers only, so ONNX Runtime folds them when it loads the model, on any execution
provider: the file is smaller, while numbers, speed and memory of a session are those of float
factors. DequantizeLinear would mean the same, but ONNX Runtime on the CPU fuses it with the product
behind it and then rounds the *activations* to int8 too: an error of which no plan knows, and slower
beyond a few rows (docs/stages.md has the figures).

Rules:

1. Initializers and nodes go into the graph that owns the weight, the nodes before all others.
2. A new name is that of the weight and a role, after checking that it is free.
3. int4 needs opset 21 (:func:`~graph_passes.planning.plan.check_opset`), and a file format that
   knows the type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.factorization.storage import Packed, Storage
from compress_onnx.graph_passes.sites.naming import UniqueNames

Sink = Callable[[Array, ir.DataType, str], ir.TensorProtocol]
"""Makes a tensor of an array, given its type and name."""

INT4_IR_VERSION = 10
_TYPES: Mapping[Storage, ir.DataType] = {
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
}


def in_memory(array: Array, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    """The plain :data:`Sink`."""
    return ir.Tensor(array, dtype=dtype, name=name)


@dataclass(frozen=True)
class Initializers:
    """Makes the new initializers of a model.

    Attributes:
        names: hands out free names.
        sink: where the numbers go.
    """

    names: UniqueNames
    sink: Sink

    def plain(self, owner: ir.Value, role: str, array: Array) -> ir.Value:
        """An initializer of ``array``, which has the type of ``owner``, in the same graph."""
        return self._add(owner, self.names(_name(owner, role)), array, _type(owner))

    def packed(
        self, owner: ir.Value, role: str, packed: Packed, properties: Mapping[str, str]
    ) -> ir.Value:
        """The decoded numbers of ``packed``, in the type of ``owner``.

        Args:
            owner: the weight that it is a factor of.
            role: ``down`` or ``up``.
            packed: what the file holds.
            properties: metadata of the nodes that decode it.
        """
        name, kind = self.names(_name(owner, role)), _type(owner)
        stored = _TYPES[packed.storage]
        numbers = packed.numbers.astype(stored.numpy(), copy=False)
        value = self._add(owner, self.names(f"{name}.{packed.storage}"), numbers, stored)
        nodes: list[ir.Node] = []

        def append(op_type: str, inputs: list[ir.Value], to: ir.DataType) -> ir.Value:
            output = ir.Value(
                name=self.names(f"{name}.{op_type.lower()}"),
                shape=ir.Shape(numbers.shape),
                type=ir.TensorType(to),
            )
            attributes = {"to": to} if op_type == "Cast" else {}
            nodes.append(
                ir.Node(
                    "",
                    op_type,
                    inputs,
                    ir.convenience.convert_attributes(attributes),
                    outputs=[output],
                    name=self.names(f"{name}.{op_type.lower()}"),
                    metadata_props=dict(properties),
                )
            )
            return output

        if packed.scale is not None:
            scale = self._add(owner, self.names(f"{name}.scale"), packed.scale, ir.DataType.FLOAT)
            value = append("Cast", [value], ir.DataType.FLOAT)
            value = append("Mul", [value, scale], ir.DataType.FLOAT)
        if value.dtype != kind:
            value = append("Cast", [value], kind)
        value.name = name
        graph = _graph(owner)
        graph.insert_before(graph[0], nodes)
        return value

    def _add(self, owner: ir.Value, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
        tensor = self.sink(np.ascontiguousarray(array), dtype, name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor
        )
        _graph(owner).register_initializer(value)
        return value


def _name(owner: ir.Value, role: str) -> str:
    return f"{owner.name}.lowrank.{role}"


def _type(owner: ir.Value) -> ir.DataType:
    assert owner.const_value is not None
    return owner.const_value.dtype


def _graph(owner: ir.Value) -> ir.Graph:
    assert owner.graph is not None
    return owner.graph
