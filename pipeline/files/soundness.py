"""What a stranger's file must satisfy before any pass looks at it.

Protobuf and onnx_ir accept much that is no sound model, and fail on it later in ways of their own.
Rules, checked on the file's messages:

1. Every name and text is UTF-8.
2. A tensor has a known type, no negative dimension, and exactly the numbers that its shape asks
   for (those in external data are checked against the file by :mod:`pipeline.files.model_file`).

and on the graph:

3. Whatever a node reads, and whatever a graph returns, exists: as an input, an initializer, or an
   output of a node.
4. No node depends on itself: there is no cycle.
5. A node of a standard operator has as many inputs as the operator takes, none of them missing
   that it requires, and attributes of the operator's types. Operators that the ``onnx`` package
   does not know are left to ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]  # ships none

from compress_onnx.graph_passes.errors import ModelFileError
from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS

_TYPES = frozenset(int(dtype) for dtype in ir.DataType) - {int(ir.DataType.UNDEFINED)}
_COMPLEX = frozenset({ir.DataType.COMPLEX64, ir.DataType.COMPLEX128})


def check_messages(proto: onnx.ModelProto) -> None:
    """Hold rules 1 and 2 against everything in ``proto``.

    Raises:
        ModelFileError: with the first trouble found.
    """
    for message in messages(proto):
        if isinstance(message, onnx.TensorProto):
            _check_tensor(message)
        else:
            for field, value in message.ListFields():
                if field.type == field.TYPE_STRING:
                    _check_text(value if isinstance(value, (str, bytes)) else list(value))


def check_graph(model: ir.Model) -> None:
    """Hold rules 3 to 5 against ``model``.

    Raises:
        ModelFileError: with the first trouble found.
    """
    _check_scope(model.graph, model.opset_imports)
    for function in model.functions.values():
        _check_scope(function, function.opset_imports)
    if not _is_sorted(model.graph):
        try:
            model.graph.sort()
        except ValueError as error:
            raise ModelFileError("its graph has a cycle: a node depends on itself") from error


def messages(message: Message) -> Iterator[Message]:
    """``message`` and all messages inside it, but nothing inside tensors."""
    yield message
    if isinstance(message, onnx.TensorProto):
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                yield from messages(inner)


def _check_text(texts: str | bytes | list[str | bytes]) -> None:
    for text in [texts] if isinstance(texts, (str, bytes)) else texts:
        if isinstance(text, bytes):
            raise ModelFileError(f"the name or text {text[:40]!r} is not UTF-8")


def _check_tensor(tensor: onnx.TensorProto) -> None:
    entries = [text for entry in tensor.external_data for text in (entry.key, entry.value)]
    _check_text([tensor.name, tensor.doc_string, *entries])
    if any("\0" in entry.value for entry in tensor.external_data):
        raise ModelFileError(f"tensor {tensor.name!r} is kept in a file whose name has a null byte")
    if tensor.data_type not in _TYPES:
        raise ModelFileError(f"tensor {tensor.name!r} has the unknown type {tensor.data_type}")
    if min(tensor.dims, default=0) < 0:
        raise ModelFileError(f"tensor {tensor.name!r} has a negative dimension")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    dtype, size = ir.DataType(tensor.data_type), math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        wanted, found = (size * dtype.bitwidth + 7) // 8, len(tensor.raw_data)
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        found = len(getattr(tensor, field))
        wanted = found if _is_packed(dtype) else size * (2 if dtype in _COMPLEX else 1)
    if found != wanted:
        raise ModelFileError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} should have {wanted} "
            f"{'bytes' if tensor.HasField('raw_data') else 'numbers'}, found {found}"
        )


def _is_packed(dtype: ir.DataType) -> bool:
    return dtype != ir.DataType.STRING and dtype.bitwidth < 8


def _check_scope(scope: ir.Graph | ir.Function, opsets: Mapping[str, int]) -> None:
    for node in ir.traversal.RecursiveGraphIterator(scope):
        for value in node.inputs:
            if value is not None and not _exists(value):
                raise ModelFileError(f"{_name(node)} reads {value.name!r}, which nothing produces")
        if node.domain in STANDARD_DOMAINS:
            _check_schema(node, opsets.get("", opsets.get("ai.onnx", 1)))
    graphs = scope.subgraphs() if isinstance(scope, ir.Function) else [scope, *scope.subgraphs()]
    for value in [*scope.outputs, *(v for graph in graphs for v in graph.outputs)]:
        if not _exists(value):
            raise ModelFileError(f"the output {value.name!r} is not produced by anything")


def _exists(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _check_schema(node: ir.Node, opset: int) -> None:
    if not onnx.defs.has(node.op_type, opset):
        return
    schema = onnx.defs.get_schema(node.op_type, opset)
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise ModelFileError(
            f"{_name(node)} has {len(node.inputs)} inputs, which is no valid count"
        )
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        if value is None and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise ModelFileError(f"{_name(node)} lacks its input {formal.name}")
    for name, attribute in node.attributes.items():
        known = schema.attributes.get(name)
        # The stub forgets that AttrType is an enum.
        if known is not None and known.type.name != attribute.type.name:  # type: ignore[attr-defined]
            raise ModelFileError(f"attribute {name!r} of {_name(node)} has the wrong type")


def _is_sorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        producers = {value.producer() for value in node.inputs if value is not None} - {None}
        if not producers <= seen:
            return False
        seen.add(node)
    return True


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or '(no name)'}"
