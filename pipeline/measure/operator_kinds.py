"""What kind of work an operator does, by its name: the one place that knows.

Names are those of ONNX and of ONNX Runtime's own operators, which a graph has after fusion
(``FusedConv``, ``SkipLayerNormalization``, ``MatMulIntegerToFloat``). Of two kinds the name cannot
tell all: a MatMul is a linear layer if one operand is a weight that can be changed, a Gather reads
an embedding if its table is a weight. Who has the graph tells them apart
(:mod:`pipeline.measure.kind_shares`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

Kind = Literal[
    "embedding",
    "linear",
    "product",
    "attention",
    "convolution",
    "recurrent",
    "quantized",
    "normalization",
    "elementwise",
    "other",
]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which a weight with readers of several kinds is counted."""

LABELS: Mapping[str, str] = {
    "embedding": "embeddings (tables that Gather reads)",
    "linear": "linear layers",
    "product": "products that are no linear layers",
    "attention": "attention and other products of two activations",
    "convolution": "convolutions",
    "recurrent": "recurrent layers (LSTM, GRU, RNN)",
    "quantized": "layers that are quantized already",
    "normalization": "norms and softmax",
    "elementwise": "elementwise operators",
    "other": "the rest (shapes, transposes, pooling, branches)",
}

_PATTERNS: tuple[tuple[str, Kind], ...] = (
    (r"Q[A-Z]|.*([Qq]uantize|Integer|NBits|Bnb4|FpQ4|Float8)", "quantized"),
    (r"(LSTM|GRU|RNN)$", "recurrent"),
    (r".*Conv(Transpose.*)?$|Reorder(Input|Output)", "convolution"),
    (r"Gather$|Embed", "embedding"),
    (r".*Attention|RotaryEmbedding", "attention"),
    (r".*(MatMul|Gemm)|Einsum|MoE", "product"),
    (r".*(Norm|Softmax)|LRN", "normalization"),
)

_ELEMENTWISE_NAMES = """
    Abs Add And BiasAdd BiasGelu BiasSplitGelu Cast CastLike Ceil Celu Clip Cos Div Elu Equal Erf
    Exp FastGelu Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QuickGelu
    Reciprocal Relu Round ScaledTanh Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum
    Swish Tan Tanh ThresholdedRelu Where Xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())


def kind_of(op_type: str) -> Kind:
    """The kind of the operator ``op_type``; for ``product`` and ``embedding`` see above."""
    for pattern, kind in _PATTERNS:
        if re.match(pattern, op_type):
            return kind
    return "elementwise" if op_type in ELEMENTWISE else "other"
