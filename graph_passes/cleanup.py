"""What is left to tidy after rewriting: dead nodes, stale shapes, and the exporter's metadata."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.naming import NAME_SCOPES
from graph_passes.sites import SITE_PROPERTY

_OWN = SITE_PROPERTY.partition(".")[0] + "."


class ForgetShapesPass(ir.passes.InPlacePass):
    """Drop the recorded types of intermediate values.

    Exporters leave hundreds of them, some stale, and a wrong one makes shape inference (and with it
    quantization) fail. Every tool infers them again. Inputs, outputs, initializers and what a
    custom operator returns (nothing could infer it again) stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them everywhere, nested graphs included."""
        modified = False
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.domain not in {"", "ai.onnx", "com.microsoft"}:
                continue
            for value in node.outputs:
                if not value.is_graph_output() and (value.type or value.shape):
                    value.type = value.shape = None
                    modified = True
        return ir.passes.PassResult(model, modified)


class StripMetadataPass(ir.passes.InPlacePass):
    """Remove exporter metadata and doc strings, which hold absolute source paths.

    Module paths (``name_scopes``) and what this project wrote stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip the model, its graphs, functions, nodes and values."""
        modified = False
        for item in _documented(model):
            stale = [k for k in item.metadata_props if k != NAME_SCOPES and not k.startswith(_OWN)]
            for key in stale:
                del item.metadata_props[key]
            modified |= bool(stale or item.doc_string)
            item.doc_string = None
        return ir.passes.PassResult(model, modified)


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


def cleanup(model: ir.Model, *, keep_metadata: bool = False) -> None:
    """Remove what nothing reads any more, stale shapes and, unless kept, exporter metadata."""
    passes: list[ir.passes.InPlacePass] = [common.RemoveUnusedNodesPass(), ForgetShapesPass()]
    if not keep_metadata:
        passes.append(StripMetadataPass())
    ir.passes.Sequential(*passes)(model)
