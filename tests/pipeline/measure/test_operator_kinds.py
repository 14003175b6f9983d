"""An operator's kind by its name."""

from __future__ import annotations

import onnx
import pytest

from compress_onnx.pipeline.measure.operator_kinds import ELEMENTWISE, KINDS, LABELS, kind_of

KNOWN = {
    "product": "MatMul Gemm FusedMatMul FusedGemm TransposeMatMul Einsum MoE GemmFastGelu",
    "quantized": """QLinearMatMul QLinearConv QLinearAdd MatMulInteger MatMulIntegerToFloat
        ConvInteger DynamicQuantizeLinear DynamicQuantizeMatMul DynamicQuantizeLSTM QuantizeLinear
        DequantizeLinear QAttention QGemm QMoE MatMulNBits MatMulBnb4 GatherBlockQuantized
        QEmbedLayerNormalization""",
    "recurrent": "LSTM GRU RNN",
    "convolution": "Conv ConvTranspose FusedConv NhwcConv NhwcFusedConv DeformConv ReorderInput",
    "embedding": "Gather EmbedLayerNormalization",
    "attention": "Attention MultiHeadAttention GroupQueryAttention RotaryEmbedding",
    "normalization": """LayerNormalization SkipLayerNormalization BatchNormalization Softmax
        SimplifiedLayerNormalization InstanceNormalization GroupNorm LogSoftmax LRN""",
    "elementwise": "Add Mul Gelu FastGelu BiasGelu QuickGelu Erf Relu Tanh Where Cast HardSwish",
    "other": "Transpose Reshape MaxPool If Loop GatherND GatherElements TopK Resize Shape NonZero",
}


@pytest.mark.parametrize("kind", KNOWN)
def test_operators_are_of_their_kind(kind: str) -> None:
    assert {kind_of(op_type) for op_type in KNOWN[kind].split()} == {kind}


def test_every_kind_has_a_label() -> None:
    assert set(KINDS) == set(LABELS)


def test_elementwise_operators_exist() -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas()}
    fused = {"BiasAdd", "BiasSplitGelu", "BiasGelu", "FastGelu", "QuickGelu", "ScaledTanh"}
    assert ELEMENTWISE - fused <= standard


def test_no_standard_operator_is_quantized_by_accident() -> None:
    quantized = {s.name for s in onnx.defs.get_all_schemas() if kind_of(s.name) == "quantized"}
    assert quantized == {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
