"""Take out what no output depends on.

``onnx-ad`` differentiates by every operand on the way, also by constants that nobody asked about,
and ONNX Runtime computes nodes that lead nowhere. Gradients by the weights of a 6-layer encoder,
``[B, K, N]`` numbers for each product, were more than half of its backward pass.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def without_dead_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with only those nodes and initializers that its outputs need."""
    model = ir.from_proto(proto)
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)
