"""Which operators compute each element of the output from the same element of the inputs."""

from __future__ import annotations

import onnx_ir as ir

from compress_onnx.graph_passes.sites.weights import STANDARD_DOMAINS

_STANDARD = frozenset(
    {
        *("Abs", "Add", "Cast", "CastLike", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu"),
        *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul"),
        *("Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
        *("Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu"),
    }
)
_CONTRIBUTED = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})


def is_elementwise(node: ir.Node) -> bool:
    """Whether ``node`` is one; operands are broadcast."""
    if node.domain in STANDARD_DOMAINS:
        return node.op_type in _STANDARD
    return node.domain == "com.microsoft" and node.op_type in _CONTRIBUTED
