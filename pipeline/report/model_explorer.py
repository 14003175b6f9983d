"""Node data for Model Explorer: what the nodes of a model tell, as a layer over its picture.

The file is JSON of Model Explorer's ``ModelNodeData``: by graph, ``results`` with a ``value`` for
each node, by its id. Graphs and nodes are called as its ONNX adapter calls them: the main graph by
its name, a graph in a node ``NODE/ATTRIBUTE``, a function ``[function]DOMAIN::NAME``; a node by its
name, or without one by its first output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import onnx

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.rewriting.told import DAMAGE, ERROR, FORM, RANK, ROUNDING
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.runtime.inputs import load_structure

Shown = Literal["damage", "error", "rank", "form"]

_NAME = "compress-onnx: "
_MAIN = "<main>"
_KEYS = {"damage": (DAMAGE, ROUNDING), "error": (ERROR,), "rank": (RANK,), "form": (FORM,)}
# From little to much; both can be read under black text.
_GRADIENT = ({"stop": 0, "bgColor": "#f7fbff"}, {"stop": 1, "bgColor": "#fc8d59"})


def write_node_data(model: Path, shown: Shown, output: Path) -> None:
    """Write what the nodes of ``model`` tell to ``output``.

    Args:
        model: whose nodes :mod:`graph_passes.rewriting.told` describes.
        shown: which of the things that they tell; damage is that of factors or neurons, and that
            of rounded numbers.
        output: a JSON file.

    Raises:
        ModelFileError: the model cannot be read.
        RequestError: none of its nodes tells that.
        OutputError: the file cannot be written.
    """
    structure = load_structure(model)
    data = {
        graph: _layer(shown, results)
        for graph, nodes in _graphs(structure)
        if (results := dict(_results(nodes, shown)))
    }
    if not data:
        raise RequestError(
            f"no node of {model} tells its {shown}: compress it anew with this version, or show "
            f"one of {', '.join(name for name in _KEYS if name != shown)}"
        )
    with atomic_file(output) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def is_node_data(path: Path) -> bool:
    """Whether the file ``path`` is one of ours."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or not content:
        return False
    return all(
        isinstance(layer, dict) and str(layer.get("name", "")).startswith(_NAME)
        for layer in content.values()
    )


def _layer(shown: Shown, results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": f"{_NAME}{shown}", "results": results}
    return found if shown == "form" else {**found, "gradient": _GRADIENT}


def _graphs(model: onnx.ModelProto) -> Iterator[tuple[str, Iterable[onnx.NodeProto]]]:
    """The graphs that Model Explorer draws, by what it calls them."""
    yield model.graph.name or _MAIN, model.graph.node
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield f"{node.name}/{attribute.name}", attribute.g.node
    for function in model.functions:
        name = f"[function]{function.domain}::{function.name}"
        overload = function.overload
        yield f"{name}::{overload}" if overload else name, function.node


def _results(
    nodes: Iterable[onnx.NodeProto], shown: Shown
) -> Iterator[tuple[str, dict[str, float | str]]]:
    for node in nodes:
        if "MatMul" not in node.op_type and node.op_type != "Gemm":
            continue  # what only decodes a weight
        told = {entry.key: entry.value for entry in node.metadata_props}
        found = [told[key] for key in _KEYS[shown] if key in told]
        value = found[0] if shown == "form" and found else _sum(found)
        if value is not None:
            yield node.name or node.output[0], {"value": value}


def _sum(texts: Iterable[str]) -> float | None:
    """Of numbers; None where there are none, or one is none."""
    try:
        values = [float(text) for text in texts]
    except ValueError:  # somebody else's metadata
        return None
    total = sum(values)
    return total if values and math.isfinite(total) else None
