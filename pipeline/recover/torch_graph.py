"""A graph of ONNX that PyTorch runs, so that autograd differentiates it.

1. The graph is *prepared* (:func:`pipeline.evidence.adjoint.prepared`): in single precision, in a
   recent opset, with operators of ONNX in place of fused ones.
2. An operator that :mod:`.torch_operators` lacks, and that ONNX defines by others, is written out
   as these others, for the types that it is given.
3. An If runs the branch that its condition takes; what a Loop or Scan computes has no gradient.
4. What is left is computed by ONNX's own reference where no gradient goes through it (operators on
   indices, say). Where one would, there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from compress_onnx.graph_passes.errors import NotDifferentiableError
from compress_onnx.pipeline.evidence.opset import opset_of
from compress_onnx.pipeline.recover.torch_operators import (
    OPERATORS,
    OWN_DOMAIN,
    Attributes,
    Operator,
    Result,
    products,
    tensor_of,
)
from compress_onnx.pipeline.runtime.inner_values import read_by
from compress_onnx.pipeline.runtime.session import one_line

_ADVICE = "leave recovery out"


class TorchGraph:
    """Computes values of a graph.

    Args:
        proto: a prepared graph with its weights inside.
        device: of PyTorch, where it runs.
    """

    def __init__(self, proto: onnx.ModelProto, device: str = "cpu") -> None:
        self._device = torch.device(device)
        with self._device:
            self._body = _Body(proto.graph.node, opset_of(proto), proto.graph.initializer)

    def __call__(
        self, feeds: Mapping[str, Tensor], wanted: Sequence[str], half: bool = False
    ) -> dict[str, Tensor]:
        """The values ``wanted``.

        Args:
            feeds: the inputs of the graph, and weights that take the place of its own.
            wanted: names of values.
            half: operands of products are rounded to bfloat16.

        Raises:
            NotDifferentiableError: an operator cannot be computed, or has no gradient.
        """
        with self._device:
            return self._body.run(feeds, wanted, {**OPERATORS, **products(half)})


class _Body:
    """Nodes in order: of a graph, of a branch, or of an operator that is written out."""

    def __init__(
        self,
        nodes: Iterable[onnx.NodeProto],
        opset: int,
        constants: Iterable[onnx.TensorProto] = (),
    ) -> None:
        self._nodes = [_Node(node, opset) for node in nodes]
        self._constants = {tensor.name: tensor_of(tensor) for tensor in constants}

    def run(
        self, given: Mapping[str, Tensor], wanted: Sequence[str], operators: Mapping[str, Operator]
    ) -> dict[str, Tensor]:
        """The values ``wanted`` that there are; what nobody reads any more, goes on the way."""
        values = {**self._constants, **given}
        uses = Counter(name for node in self._nodes for name in node.reads)
        uses.update(wanted)
        for node in self._nodes:
            result = node.computed(values, operators)
            results = result if isinstance(result, tuple) else (result,)
            for name, value in zip(node.proto.output, results, strict=False):
                values[name] = value
            for name in node.reads:
                uses[name] -= 1
                if not uses[name]:
                    values.pop(name, None)
        return {name: values[name] for name in wanted if name in values}


class _Node:
    """A node, and what was found out about it."""

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.proto = proto
        self.reads = read_by(proto)
        self._opset = opset
        self._attributes = Attributes(proto)
        self._branches: dict[str, _Body] = {}
        self._functions: dict[tuple[bytes, ...], _Function | None] = {}

    def computed(self, values: Mapping[str, Tensor], operators: Mapping[str, Operator]) -> Result:
        """What the node computes of the ``values`` before it."""
        proto = self.proto
        operands = [values[name] if name else None for name in proto.input]
        try:
            if proto.op_type == "If":
                return self._branch(values, operators)
            if proto.domain in {"", "ai.onnx", OWN_DOMAIN}:
                if operator := operators.get(proto.op_type):
                    return operator(self._attributes, *operands)
                if function := self._function(operands):
                    return function.run(operands, operators)
            if any(operand is not None and operand.requires_grad for operand in operands):
                raise NotImplementedError("no gradient goes through it")
            return _by_reference(proto, operands, self._opset)
        except NotDifferentiableError:
            raise
        except Exception as error:  # kernels raise many classes on what they cannot compute
            raise NotDifferentiableError(
                f"no gradient of this graph can be computed ({proto.op_type} {proto.name!r}: "
                f"{one_line(error)}): {_ADVICE}"
            ) from error

    def _branch(self, values: Mapping[str, Tensor], operators: Mapping[str, Operator]) -> Result:
        taken = "then_branch" if bool(values[self.proto.input[0]]) else "else_branch"
        graph: onnx.GraphProto = self._attributes[taken]
        if taken not in self._branches:
            self._branches[taken] = _Body(graph.node, self._opset, graph.initializer)
        wanted = [value.name for value in graph.output]
        found = self._branches[taken].run(values, wanted, operators)
        return tuple(found[name] for name in wanted)

    def _function(self, operands: Sequence[Tensor | None]) -> _Function | None:
        """The node by other operators, for operands of these types and sizes."""
        types = tuple(b"" if x is None else _type_of(x).SerializeToString() for x in operands)
        if types not in self._functions:
            definition = _definition(self.proto, types, self._opset)
            self._functions[types] = definition and _Function(definition, self._opset)
        return self._functions[types]


class _Function:
    """A node as other operators compute it."""

    def __init__(self, proto: onnx.FunctionProto, opset: int) -> None:
        self._inputs, self._outputs = list(proto.input), list(proto.output)
        self._body = _Body(proto.node, _opset_of_function(proto, opset))

    def run(self, operands: Sequence[Tensor | None], operators: Mapping[str, Operator]) -> Result:
        """What the node computes."""
        given = {
            name: value
            for name, value in zip(self._inputs, operands, strict=False)
            if value is not None
        }
        found = self._body.run(given, self._outputs, operators)
        return tuple(found[name] for name in self._outputs if name in found)


def _opset_of_function(function: onnx.FunctionProto, default: int) -> int:
    """The version of ONNX's operators that a function is written in."""
    versions = (o.version for o in function.opset_import if o.domain in {"", "ai.onnx"})
    return next(versions, default)


def _definition(
    node: onnx.NodeProto, types: Sequence[bytes], opset: int
) -> onnx.FunctionProto | None:
    """``node`` by other operators, its attributes filled in; None where ONNX has no such words."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset)  # its types are not all declared
    except onnx.defs.SchemaError:
        return None
    if schema.has_context_dependent_function:
        function = onnx.FunctionProto.FromString(
            schema.get_context_dependent_function(node.SerializeToString(), list(types))
        )
    elif schema.has_function:
        function = schema.function_body
    else:
        return None
    given = {attribute.name: attribute for attribute in node.attribute}
    defaults = {name: a.default_value for name, a in schema.attributes.items()}
    filled = onnx.FunctionProto()
    filled.CopyFrom(function)
    for inner in filled.node:
        _fill(inner, {**defaults, **given})
    return filled


def _fill(node: onnx.NodeProto, given: Mapping[str, AttributeProto]) -> None:
    """Give ``node`` the attributes that it takes from its function, in place."""
    kept = []
    for attribute in node.attribute:
        own = AttributeProto()
        own.CopyFrom(attribute)
        if attribute.ref_attr_name:
            found = given.get(attribute.ref_attr_name)
            if found is None or found.type == AttributeProto.UNDEFINED:
                continue
            own.CopyFrom(found)
            own.name = attribute.name
        for inner in own.g.node:
            _fill(inner, given)
        kept.append(own)
    del node.attribute[:]
    node.attribute.extend(kept)


def _type_of(value: Tensor) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(
        helper.np_dtype_to_tensor_dtype(np.dtype(str(value.dtype).removeprefix("torch."))),
        list(value.shape),
    )


def _by_reference(node: onnx.NodeProto, operands: Sequence[Tensor | None], opset: int) -> Result:
    names = [name for name in node.input if name]
    arrays = [operand.detach().cpu().numpy() for operand in operands if operand is not None]
    evaluator = ReferenceEvaluator(node, opsets={"": opset})
    results = evaluator.run(None, dict(zip(names, arrays, strict=True)))
    return tuple(torch.tensor(np.asarray(result)) for result in results)
