"""Find every linear site ``y = x·W (+ b)`` of a graph, and say why the other products are none.

Rules:

1. What one node is, :mod:`graph_passes.sites.matching` says.
2. A weight counts only if every reader of its initializer is a site that reads it the same way:
   otherwise the dense weight would have to stay in the file and factoring would add to it.
3. Sites are found in the bodies of If, Loop and Scan too. In a model-local function that
   :mod:`graph_passes.rewriting.canonicalize` did not inline, products are skipped.
4. Below opset 11 (Gemm without C) the graph is left alone.
5. Everything that multiplies matrices and is no site is a :class:`SkippedNode` with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

from compress_onnx.graph_passes.sites.linear_site import SITE_PROPERTY, Bias, LinearSite
from compress_onnx.graph_passes.sites.matching import is_product, match
from compress_onnx.graph_passes.sites.naming import UniqueNames
from compress_onnx.graph_passes.sites.weights import readers

__all__ = ["SITE_PROPERTY", "Bias", "LinearSite", "SiteTable", "SkippedNode", "find_sites", "match"]

MIN_OPSET = 11


class SkippedNode(BaseModel):
    """A MatMul or Gemm that is no linear site, and the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class SiteTable:
    """All linear sites of a model of ``opset``, and all matrix products that are none."""

    sites: tuple[LinearSite, ...]
    skipped: tuple[SkippedNode, ...]
    opset: int


def find_sites(model: ir.Model) -> SiteTable:
    """Find all linear sites of ``model``; reads no weights and changes nothing."""
    found: list[LinearSite] = []
    skipped: list[SkippedNode] = []
    names = UniqueNames()
    for node in _products(model.graph):
        site = _too_old(model) or match(node)
        if isinstance(site, str):
            skipped.append(_skip(node, site))
        else:
            nested = node.graph is not model.graph
            found.append(replace(site, name=names(site.name), nested=nested))
    for function in model.functions.values():
        reason = f"inside the model-local function {function.name!r}, which cannot be inlined"
        skipped.extend(_skip(node, reason) for node in _products(function))
    by_node = {site.node: site for site in found}
    sites: list[LinearSite] = []
    for site in found:
        reason_to_skip = _other_reader(site, by_node)
        if reason_to_skip is None:
            sites.append(site)
        else:
            skipped.append(_skip(site.node, reason_to_skip))
    return SiteTable(tuple(sites), tuple(skipped), model.opset_imports.get("", MIN_OPSET))


def _products(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    return filter(is_product, ir.traversal.RecursiveGraphIterator(graph))


def _too_old(model: ir.Model) -> str | None:
    opset = model.opset_imports.get("", MIN_OPSET)
    return f"opset {opset} is older than {MIN_OPSET}: convert it" if opset < MIN_OPSET else None


def _other_reader(site: LinearSite, sites: Mapping[ir.Node, LinearSite]) -> str | None:
    """Rule 2: what keeps the dense weight of ``site`` alive, in words."""
    name = site.weight.initializer.name
    for reader, index in readers(site.weight.initializer):
        if reader is None:
            return f"weight {name!r} is a graph output"
        other = sites.get(reader)
        if other is None or index != other.weight_index:
            return (
                f"weight {name!r} is also read by {reader.op_type} {reader.name!r}: "
                "factoring it would remove nothing"
            )
        if (other.weight.transposed, other.on_left) != (site.weight.transposed, site.on_left):
            return f"weight {name!r} is read in two ways (transposed, or on the other side)"
    return None


def _skip(node: ir.Node, reason: str) -> SkippedNode:
    return SkippedNode(node=node.name or "", op_type=node.op_type, reason=reason)
