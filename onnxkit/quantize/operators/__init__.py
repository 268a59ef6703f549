"""The table of operators that can be quantized: one file an operator, one row here."""

from __future__ import annotations

from onnxkit.quantize.operators.attention import PackedAttention
from onnxkit.quantize.operators.base import Operator, Refusal, Rewriting, Target
from onnxkit.quantize.operators.conv import Conv
from onnxkit.quantize.operators.embedding import Embedding
from onnxkit.quantize.operators.experts import Experts
from onnxkit.quantize.operators.linear import FusedMatMul, Gemm, MatMul
from onnxkit.quantize.operators.mixture import Mixture

__all__ = ["OPERATORS", "Operator", "Refusal", "Rewriting", "Target"]

OPERATORS: dict[tuple[str, str], Operator] = {
    (operator.domain, operator.op_type): operator
    for operator in (
        MatMul(),
        Gemm(),
        FusedMatMul(),
        PackedAttention(),
        Embedding(),
        Conv(),
        Experts(),
        Mixture(),
    )
}
