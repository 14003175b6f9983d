"""Keep ONNX Runtime from fusing a residual sum with the LayerNorm behind it.

Its CPU kernel of the two together, SkipLayerNormalization, takes more time than one of each
(docs/performance.md); its CUDA kernel adds squares up in float16. ``Sum`` of two values is ``Add``
by another name, which the fusion does not look for:

    Add(x, y) → LayerNormalization   ->   Sum(x, y) → LayerNormalization

Rules:

1. Nothing else changes; the numbers are the same.
2. The norm may be one node or spelled out (ReduceMean and Sub of the sum).
3. Both operands are computed: a bias in front of a norm stays an Add, for other fusions.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS


class UnfuseNormsPass(ir.passes.InPlacePass):
    """Write residual sums in front of norms as ``Sum``.

    Args:
        names: of the sums, as nodes; None for all.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        super().__init__()
        self._names = names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes nothing in a model without such sums."""
        found = [
            node for node in residual_sums(model) if self._names is None or node.name in self._names
        ]
        for node in found:
            node.op_type = "Sum"
        return ir.passes.PassResult(model, modified=bool(found))


def residual_sums(model: ir.Model) -> list[ir.Node]:
    """The sums that a norm stands behind, in nested graphs too."""
    return [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if _is_residual(n)]


def _is_residual(node: ir.Node) -> bool:
    if node.op_type != "Add" or node.domain not in STANDARD_DOMAINS:
        return False
    if any(value is None or value.const_value is not None for value in node.inputs):
        return False
    readers = {
        reader.op_type
        for reader, index in node.outputs[0].uses()
        if reader.domain in STANDARD_DOMAINS and index == 0
    }
    return "LayerNormalization" in readers or {"ReduceMean", "Sub"} <= readers
