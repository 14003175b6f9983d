"""Shapes that a graph records, held against those that it has.

Exporters leave shapes of intermediate values that later rewriting made wrong, and tools that infer
shapes strictly (``onnxruntime.quantization``) then refuse the model. Shapes are inferred by ONNX on
a sketch of the model, without recorded shapes and without large weights; a recorded shape that
contradicts the inferred one is dropped. All others stay, and none is added: ONNX Runtime's fusions
depend on them (:mod:`graph_passes.rewriting.cleanup`).

Inference stops at operators that ONNX does not know, and fails as a whole on a graph that is wrong
itself, or above 2 GiB. Nothing is dropped then, and a line in the log says so. That is no error:
recorded shapes are hints, and the model that is written keeps those that it came with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # ships none

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1024
"""Weights up to this size stay in the sketch: shapes are computed from them."""

InferredType = onnx.TypeProto.Tensor


class DropWrongShapesPass(ir.passes.InPlacePass):
    """Drop recorded shapes and types of intermediate values that contradict the graph."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Needs value names that are unique in the model; changes nothing if inference fails."""
        inferred = inferred_types(model)
        modified = False
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            for value in node.outputs:
                found = inferred.get(value.name or "")
                if found and not value.is_graph_output() and _contradicts(value, found):
                    value.shape = value.type = None
                    modified = True
        return ir.passes.PassResult(model, modified)


def inferred_types(model: ir.Model) -> Mapping[str, InferredType]:
    """Types of intermediate tensors by name, as far as ONNX can infer them; none if that fails."""
    try:
        proto = onnx.shape_inference.infer_shapes(_sketch(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError) as error:  # or > 2 GiB
        logger.info("recorded shapes stay unchecked, as ONNX cannot infer them: %s", error)
        return {}
    return {
        value.name: value.type.tensor_type
        for graph in _graphs(proto.graph)
        for value in graph.value_info
        if value.type.HasField("tensor_type")
    }


def _sketch(model: ir.Model) -> onnx.ModelProto:
    """The model without recorded shapes, its large weights turned into inputs."""
    sketch = model.clone()
    for name, weight in list(sketch.graph.initializers.items()):
        assert weight.const_value is not None
        if weight.const_value.nbytes > _SMALL_BYTES and not weight.is_graph_input():
            weight.shape = ir.Shape(weight.const_value.shape.numpy())
            weight.type = ir.TensorType(weight.const_value.dtype)
            del sketch.graph.initializers[name]
            weight.const_value = None
            sketch.graph.inputs.append(weight)
    for node in ir.traversal.RecursiveGraphIterator(sketch.graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    return ir.to_proto(sketch)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _graphs(subgraph)


def _contradicts(value: ir.Value, inferred: InferredType) -> bool:
    if value.dtype is not None and inferred.elem_type and value.dtype != inferred.elem_type:
        return True
    if value.shape is None or not inferred.HasField("shape"):
        return False
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in inferred.shape.dim]
    return len(sizes) != len(value.shape) or any(
        isinstance(recorded, int) and size is not None and recorded != size
        for recorded, size in zip(value.shape, sizes, strict=True)
    )
