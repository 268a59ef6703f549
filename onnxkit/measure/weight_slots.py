"""Which input of an operator holds its weight, and which hold scales and zero points.

The slots are those of the ONNX operator set and of ONNX Runtime's contrib operators
(docs/ContribOperators.md of onnxruntime).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightSlots:
    """Input positions of one operator type.

    Attributes:
        weight: position of the weight.
        quantized: whether the operator itself computes with an integer weight.
        parameters: positions of scales and zero points, which are no model parameters.
        linear: whether the operator is a matrix product or a convolution.
        second: of another weight that the operator has.
    """

    weight: int
    quantized: bool = False
    parameters: tuple[int, ...] = ()
    linear: bool = True
    second: WeightSlots | None = None


WEIGHT_SLOTS: dict[str, WeightSlots] = {
    "MatMul": WeightSlots(weight=1),
    "Gemm": WeightSlots(weight=1),
    "FusedMatMul": WeightSlots(weight=1),
    "FusedGemm": WeightSlots(weight=1),
    "Conv": WeightSlots(weight=1),
    "FusedConv": WeightSlots(weight=1),
    "Attention": WeightSlots(weight=1),
    "MatMulInteger": WeightSlots(weight=1, quantized=True, parameters=(2, 3)),
    "MatMulIntegerToFloat": WeightSlots(weight=1, quantized=True, parameters=(2, 3, 4, 5)),
    "DynamicQuantizeMatMul": WeightSlots(weight=1, quantized=True, parameters=(2, 3)),
    "MatMulNBits": WeightSlots(weight=1, quantized=True, parameters=(2, 3)),
    "QAttention": WeightSlots(weight=1, quantized=True, parameters=(3, 4, 6, 7)),
    "QLinearMatMul": WeightSlots(weight=3, quantized=True, parameters=(1, 2, 4, 5, 6, 7)),
    "QGemm": WeightSlots(weight=3, quantized=True, parameters=(1, 2, 4, 5, 7, 8)),
    "QLinearConv": WeightSlots(weight=3, quantized=True, parameters=(1, 2, 4, 5, 6, 7)),
    "ConvInteger": WeightSlots(weight=1, quantized=True, parameters=(2, 3)),
    "MoE": WeightSlots(weight=2, second=WeightSlots(weight=4)),
    "QMoE": WeightSlots(
        weight=2, quantized=True, parameters=(3, 11),
        second=WeightSlots(weight=5, quantized=True, parameters=(6, 12)),
    ),
    "Gather": WeightSlots(weight=0, linear=False),
    "GatherBlockQuantized": WeightSlots(weight=0, quantized=True, parameters=(2, 3), linear=False),
    "QuantizeLinear": WeightSlots(weight=0, parameters=(1, 2), linear=False),
    "DequantizeLinear": WeightSlots(weight=0, parameters=(1, 2), linear=False),
}  # fmt: skip


def slots_at(op_type: str, slot: int) -> WeightSlots | None:
    """Return what an operator type's input at a position belongs to: the weight that it is or scales."""
    found = WEIGHT_SLOTS.get(op_type)
    second = None if found is None else found.second
    return second if second is not None and slot in (second.weight, *second.parameters) else found


PASS_THROUGH = frozenset(
    {
        "DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "Slice", "Squeeze",
        "Unsqueeze",
    }
)  # fmt: skip
"""Operators that only hand a weight on: its bytes are counted for whoever uses the result."""
