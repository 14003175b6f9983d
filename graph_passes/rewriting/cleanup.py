"""What is left to tidy after rewriting: dead nodes and weights, wrong shapes, metadata.

Recorded shapes of intermediate values stay, but for those that were wrong from the start: rewriting
keeps the shape of every value that survives, and ONNX Runtime's fusions depend on them. Dropping
them from one of two models (measured: it stops SkipLayerNormalization fusion) changes its speed for
a reason that has nothing to do with low rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from compress_onnx.graph_passes.rewriting.shapes import DropWrongShapesPass
from compress_onnx.graph_passes.sites.naming import NAME_SCOPES


class StripMetadataPass(ir.passes.InPlacePass):
    """Remove what exporters wrote about sources, which holds absolute paths of somebody's machine.

    That is metadata under ``pkg.`` or ``namespace`` (torch, onnxscript), but for module paths
    (``name_scopes``), and the doc strings of nodes and functions (stack traces). Everything else is
    its owner's: dictionaries, labels, licences, descriptions.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip the model, its graphs, functions, nodes and values."""
        modified = False
        for item in _documented(model):
            stale = [key for key in item.metadata_props if _is_trace(key)]
            for key in stale:
                del item.metadata_props[key]
            modified |= bool(stale)
            if isinstance(item, ir.Node | ir.Function) and item.doc_string:
                item.doc_string = None
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_trace(key: str) -> bool:
    return key == "namespace" or (key.startswith("pkg.") and key != NAME_SCOPES)


def _documented(
    model: ir.Model,
) -> Iterator[ir.Model | ir.Graph | ir.Function | ir.Node | ir.Value]:
    yield model
    owners: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for owner in owners:
        yield owner
        yield from owner.inputs
        if isinstance(owner, ir.Graph):
            yield from owner.initializers.values()
        for node in owner:
            yield node
            yield from node.outputs


class RemoveUnusedInitializersPass(ir.passes.InPlacePass):
    """Remove weights that nothing reads any more, in the bodies of If, Loop and Scan too."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every graph of ``model``."""
        modified = False
        for graph in model.graphs():
            for name, value in list(graph.initializers.items()):
                if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    del graph.initializers[name]
                    modified = True
        return ir.passes.PassResult(model, modified)


class CleanupPass(ir.passes.InPlacePass):
    """Remove what nothing reads any more, shapes that are wrong, and exporter metadata.

    Args:
        keep_metadata: whether the metadata stays.
    """

    def __init__(self, *, keep_metadata: bool = False) -> None:
        super().__init__()
        self._keep_metadata = keep_metadata

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Tidy ``model``; needs value names that are unique in it."""
        passes: list[ir.passes.InPlacePass] = [
            common.RemoveUnusedNodesPass(),
            RemoveUnusedInitializersPass(),
            DropWrongShapesPass(),
        ]
        if not self._keep_metadata:
            passes.append(StripMetadataPass())
        return ir.passes.Sequential(*passes)(model)
