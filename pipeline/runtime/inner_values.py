"""Values inside graphs: what a node reads, and graphs that give them out, or hold none."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from compress_onnx.pipeline.runtime.protobuf import OUTSIDE, serialized


def expose(proto: onnx.ModelProto, names: Iterable[str]) -> None:
    """Add to the outputs of ``proto``, in place, the values ``names`` that its nodes compute.

    What is an output already, and what is fed or stored and not computed, is left out.
    """
    computed = {name for node in proto.graph.node for name in node.output}
    present = {value.name for value in proto.graph.output}
    # ONNX Runtime infers the types of outputs that declare none.
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name)
        for name in dict.fromkeys(names)
        if name in computed - present
    )


def exposed(model: ir.Model, names: Iterable[str]) -> bytes:
    """The serialized ``model`` with the values ``names`` as outputs; it is left as it was."""
    proto = ir.to_proto(model)
    expose(proto, names)
    return serialized(proto, instead=OUTSIDE)


def interface(model: ir.Model) -> bytes:
    """A serialized model that takes what ``model`` takes, and holds no weights.

    A session of it tells what may be fed, and costs nothing.
    """
    stored = model.graph.initializers.keys()
    inputs = [ir.to_proto(value) for value in model.graph.inputs if value.name not in stored]
    nodes = [
        onnx.helper.make_node("Identity", [value.name], [f"{value.name}.returned"])
        for value in inputs
    ]
    outputs = [onnx.ValueInfoProto(name=node.output[0]) for node in nodes]
    graph = onnx.helper.make_graph(nodes, "interface", inputs, outputs)
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=model.ir_version)
    return bytes(proto.SerializeToString())


def read_by(node: onnx.NodeProto) -> list[str]:
    """What ``node`` reads: its inputs, and what the graphs inside it take from outside."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
            for inner in graph.node:
                names += [name for name in read_by(inner) if name not in own]
                own.update(inner.output)
            names += [value.name for value in graph.output if value.name not in own]
    return names
