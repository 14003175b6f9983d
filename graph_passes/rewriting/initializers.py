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
4. Numbers are kept in the sink first (:meth:`Initializers.keep`), which changes no graph, and
   placed in the graph later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
class Kept:
    """Numbers that are in the sink, and not in the graph yet.

    Attributes:
        name: of the value that stands for them in the graph.
        numbers: as the file holds them.
        scale: what decodes integers; None for numbers of other types.
    """

    name: str
    numbers: ir.TensorProtocol
    scale: ir.TensorProtocol | None = None


@dataclass(frozen=True)
class Initializers:
    """Makes the new initializers of a model.

    Attributes:
        names: hands out free names.
        sink: where the numbers go.
    """

    names: UniqueNames
    sink: Sink

    def keep(self, owner: ir.Value, role: str, array: Array, packed: Packed | None = None) -> Kept:
        """Put numbers that belong to the weight ``owner`` into the sink.

        Args:
            owner: the weight whose type and graph they are going to have.
            role: what they are to it, such as ``lowrank.down``: the end of their name.
            array: what the graph computes with, in the type of ``owner``.
            packed: what the file holds instead, where it does.
        """
        name = self.names(f"{owner.name}.{role}")
        if packed is None:
            return Kept(name, self._sunk(array, _type(owner), name))
        stored = _TYPES[packed.storage]
        numbers = packed.numbers.astype(stored.numpy(), copy=False)
        kept = self._sunk(numbers, stored, self.names(f"{name}.{packed.storage}"))
        if packed.scale is None:
            return Kept(name, kept)
        return Kept(
            name, kept, self._sunk(packed.scale, ir.DataType.FLOAT, self.names(f"{name}.scale"))
        )

    def place(self, owner: ir.Value, kept: Kept, properties: Mapping[str, str]) -> ir.Value:
        """The value of ``kept`` in the graph of ``owner``, and in its type.

        Args:
            owner: as it was kept for.
            kept: the numbers.
            properties: metadata of the nodes that decode them.
        """
        graph, kind = _graph(owner), _type(owner)
        value = register(graph, kept.numbers)
        nodes: list[ir.Node] = []
        if kept.scale is not None:
            scale = register(graph, kept.scale)
            nodes.append(self._decoder(kept, "Cast", [value], ir.DataType.FLOAT, properties))
            nodes.append(
                self._decoder(
                    kept, "Mul", [nodes[-1].outputs[0], scale], ir.DataType.FLOAT, properties
                )
            )
            value = nodes[-1].outputs[0]
        if value.dtype != kind:
            nodes.append(self._decoder(kept, "Cast", [value], kind, properties))
            value = nodes[-1].outputs[0]
        if nodes:
            value.name = kept.name
            graph.insert_before(graph[0], nodes)
        return value

    def _decoder(
        self,
        kept: Kept,
        op_type: str,
        inputs: Sequence[ir.Value],
        to: ir.DataType,
        properties: Mapping[str, str],
    ) -> ir.Node:
        """A node of ``op_type`` on the way to numbers of the type ``to``."""
        name = f"{kept.name}.{op_type.lower()}"
        output = ir.Value(
            name=self.names(name),
            shape=ir.Shape(kept.numbers.shape.numpy()),
            type=ir.TensorType(to),
        )
        return ir.Node(
            "",
            op_type,
            inputs,
            ir.convenience.convert_attributes({"to": to} if op_type == "Cast" else {}),
            outputs=[output],
            name=self.names(name),
            metadata_props=dict(properties),
        )

    def _sunk(self, array: Array, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
        return self.sink(np.ascontiguousarray(array), dtype, name)


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of ``graph``, by the name of ``tensor``."""
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _type(owner: ir.Value) -> ir.DataType:
    assert owner.const_value is not None
    return owner.const_value.dtype


def _graph(owner: ir.Value) -> ir.Graph:
    assert owner.graph is not None
    return owner.graph
