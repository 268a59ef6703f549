"""The operators by which a quantized graph is known, the standard's and ONNX Runtime's."""

from __future__ import annotations

ROUNDING_OPS = frozenset(
    {
        "QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
        "QLinearMatMul", "QLinearConv", "QLinearAdd", "QGemm", "QAttention",
    }
)  # fmt: skip
"""Round activations to 8 bits, or take and make such."""

INTEGER_OPS = ROUNDING_OPS | {
    "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "QMoE",
    "QEmbedLayerNormalization", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized",
}  # fmt: skip
"""All of them."""
