"""Make a freshly exported graph fit to be read and shared: named axes, none of the debris."""

from __future__ import annotations

import re

import onnx_ir as ir

from compress_onnx.pipeline.export.torch_model import Axes

# The exporter's notes to itself; they hold absolute paths and outweigh the nodes. The names of
# the modules that nodes came from stay.
_NOISE = re.compile(r"pkg\.torch\.(onnx\.(stack_trace|fx_node)|export\..*)")


def name_axes(model: ir.Model, axes: Axes) -> None:
    """Rename the exporter's symbols (``s18``) everywhere to what ``axes`` calls those axes."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in axes.get(value.name or "", {}).items():
            symbol = value.shape[axis] if value.shape is not None else None
            if isinstance(symbol, ir.SymbolicDim):
                names.setdefault(str(symbol.value), name)
    for graph in model.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            _rename(value, names)


def _rename(value: ir.Value, names: dict[str, str]) -> None:
    if value.shape is None:
        return
    for axis, size in enumerate(value.shape):
        if isinstance(size, ir.SymbolicDim) and size.value is not None:
            # A derived size is a formula of symbols, such as Min(512, s18).
            text = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), size.value)
            value.shape[axis] = ir.SymbolicDim(text)


def drop_noise(model: ir.Model) -> None:
    """Remove stack traces and other notes of the exporter to itself."""
    graphs = [graph.metadata_props for graph in model.graphs()]
    nodes = [node.metadata_props for node in model.graph.all_nodes()]
    for metadata in graphs + nodes:
        for key in [key for key in metadata if _NOISE.fullmatch(key)]:
            del metadata[key]
