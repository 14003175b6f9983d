"""Bring a graph into the form that the other passes rely on, without changing what it computes.

1. Model-local functions that multiply matrices are inlined, as ONNX Runtime itself does when it
   loads a model: their weights are then bound by scope, whatever the formal parameters are called.
   Other functions stay, and so does one that :func:`_can_inline` rules out.
2. Weights are initializers, never Constant nodes.
3. Every node has a name of its own, and every value in the graphs too, also where the branches of
   an If used one name twice. Inputs and outputs of the model keep theirs, and an output that a node
   leaves out keeps having none.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from itertools import chain

import onnx_ir as ir
from onnx_ir.passes import common

from compress_onnx.graph_passes.sites.matching import is_product
from compress_onnx.graph_passes.sites.naming import UniqueNames

MAX_INLINED_NODES = 200_000
"""A graph that grows beyond this is left with its functions."""


class CanonicalizePass(ir.passes.InPlacePass):
    """Inline functions that hold products, lift constants and make names unique."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bring ``model`` into the canonical form; one that has it is not modified."""
        inlined = inline_functions(model)
        lifted = common.LiftConstantsToInitializersPass(lift_all_constants=False)(model).modified
        renamed = make_names_unique(model)
        return ir.passes.PassResult(model, modified=inlined or lifted or renamed)


def inline_functions(model: ir.Model) -> bool:
    """Rule 1; inlines nothing where functions call each other in a circle or would explode.

    Returns:
        Whether any was inlined.
    """
    nodes = {
        identifier: tuple(ir.traversal.RecursiveGraphIterator(function))
        for identifier, function in model.functions.items()
    }
    calls = {caller: {n.op_identifier() for n in nodes[caller]} & nodes.keys() for caller in nodes}
    try:
        callees_first = tuple(TopologicalSorter(calls).static_order())
    except CycleError:
        return False
    size: dict[ir.OperatorIdentifier, int] = {}
    multiplying: set[ir.OperatorIdentifier] = set()
    for identifier in callees_first:
        size[identifier] = sum(size.get(node.op_identifier(), 1) for node in nodes[identifier])
        if calls[identifier] & multiplying or any(map(is_product, nodes[identifier])):
            multiplying.add(identifier)
    inlined = {i for i in multiplying if _can_inline(model.functions[i], model)}
    total = sum(
        size.get(node.op_identifier(), 1)
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
    )
    if not inlined or total > MAX_INLINED_NODES:
        return False
    return common.InlinePass(lambda function: function.identifier() in inlined)(model).modified


def _can_inline(function: ir.Function, model: ir.Model) -> bool:
    """Not one of another opset, nor one that hands an input through or takes a graph.

    Handing an input through would have to rename a value that others read.
    """
    return (
        all(
            model.opset_imports.get(domain, version) == version
            for domain, version in function.opset_imports.items()
        )
        and not set(function.inputs) & set(function.outputs)
        and all(
            attribute.type not in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            for attribute in function.attributes.values()
        )
    )


def make_names_unique(model: ir.Model) -> bool:
    """Rule 3; the first that has a name keeps it, outer graphs before their subgraphs.

    Returns:
        Whether anything was renamed.
    """
    interface = dict.fromkeys(chain(model.graph.inputs, model.graph.outputs))
    value_name = UniqueNames((value.name for value in interface if value.name), separator="_")
    node_name = UniqueNames(separator="_")
    renamed = False
    for graph in model.graphs():
        outputs = (output for node in graph for output in node.outputs)
        for value in dict.fromkeys(chain(graph.inputs, graph.initializers.values(), outputs)):
            if value.name and value not in interface:
                renamed |= _rename(value, value_name(value.name))
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        name = node.name or f"{node.op_type}_{node.outputs[0].name}"
        renamed |= _rename(node, node_name(name))
    return renamed


def _rename(item: ir.Value | ir.Node, name: str) -> bool:
    if item.name == name:
        return False
    item.name = name
    return True
