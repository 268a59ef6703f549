"""A product of an activation and a constant matrix, written in each format.

Integer form: u8 activation x s8 weight -> float in one operator, `com.microsoft.MatMulIntegerToFloat`, with
a bias that follows folded in. The output stays float: quantizing it as well took a MiniLM from cosine 0.97
to 0.84. The same in standard operators: a float product of dequantized sides, which ONNX Runtime fuses back
into that. Block form: `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.nbits import matmul_attributes
from onnxkit.quantize.formats import BlockFormat, IntegerFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Placement,
    Rewriting,
    Target,
    blocked_tensor,
    input_of,
    int8_zero,
    int32_bias,
    node,
)


def product(target: Target, context: Rewriting, bias: ir.Value | None) -> list[ir.Node]:
    """The nodes of `target`'s product in its format; the last one's output is the result."""
    match context.format_of(target):
        case IntegerFormat(style="qdq"):
            return qdq_matmul(target, context, bias)
        case IntegerFormat():
            return integer_matmul(target, context, bias)
        case BlockFormat() as blocks:
            return blockwise_matmul(target, context, bias, blocks)
        case other:
            raise ValueError(f"no product in {other.describe()}")


def integer_matmul(target: Target, context: Rewriting, bias: ir.Value | None) -> list[ir.Node]:
    """The nodes of u8 x s8 -> float for `target`; the last one's output is the result."""
    name = target.name
    made, matrix, scales = _integer_weight(target, context)
    x = context.rows_of(target)
    inputs = [x.codes, matrix, x.scale, scales, x.zero_point, int8_zero(context, target.channels)]
    if x.rows is None:
        inputs += [] if bias is None else [bias]
        return [*made, node("MatMulIntegerToFloat", inputs, name, domain=CONTRIB)]
    product = node("MatMulIntegerToFloat", inputs, f"{name}/product", domain=CONTRIB)
    made += [product, node("Mul", [product.outputs[0], x.rows], name)]
    return made if bias is None else [*made, node("Add", [made[-1].outputs[0], bias], f"{name}/bias")]


def qdq_matmul(target: Target, context: Rewriting, bias: ir.Value | None) -> list[ir.Node]:
    """MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(W)) in standard operators."""
    name = target.name
    made, matrix, scales = _integer_weight(target, context)
    inputs = [matrix, scales, int8_zero(context, target.channels)]
    weight = node("DequantizeLinear", inputs, f"{name}/weight", attributes={"axis": 1})
    x = context.dequantized_input_of(target)
    if bias is not None and target.node.op_type == "Gemm":
        # ONNX Runtime makes a Gemm of a matrix's MatMul and Add, and fuses that only over a bias in integers.
        codes, scale = int32_bias(target, context, bias, scales)
        addend = node("DequantizeLinear", [codes, scale], f"{name}/bias", attributes={"axis": 0})
        return [*made, weight, addend, node("Gemm", [x, weight.outputs[0], addend.outputs[0]], name)]
    made += [weight, node("MatMul", [x, weight.outputs[0]], name)]
    return made if bias is None else [*made, node("Add", [made[-1].outputs[0], bias], f"{name}/bias")]


def _integer_weight(target: Target, context: Rewriting) -> tuple[list[ir.Node], ir.Value, ir.Value]:
    """Nodes before the product, the int8 codes [K, N] and their scales [N].

    A weight stored as [N, K] is written transposed, unless a lookup reads it too: then one copy is stored
    and a Transpose, which ONNX Runtime folds when it loads the file, stands before the product.
    """
    name, by_row = target.name, target.channel_axis == 0
    place: Placement = {"axis": target.channel_axis, "format": context.integer(target), "layer": name}
    scales = context.weights.scales(target.weight, **place)
    tied = by_row and target.tied
    codes = context.weights.codes(
        target.weight, turned=by_row and not tied, **place, **context.rounded(target)
    )
    if not tied:
        return [], codes, scales
    turned = node("Transpose", [codes], f"{name}/transpose_weight", attributes={"perm": [1, 0]})
    return [turned], turned.outputs[0], scales


def blockwise_matmul(
    target: Target, context: Rewriting, bias: ir.Value | None, blocks: BlockFormat
) -> list[ir.Node]:
    """MatMulNBits: float input, weights in blocks."""
    weight = context.blocks.matrix(blocked_tensor(target), blocks)
    inputs: list[ir.Value | None] = [input_of(target), weight.codes, weight.scales, weight.zero_points]
    inputs += [None, bias]
    while inputs[-1] is None:
        inputs.pop()
    attributes = matmul_attributes(
        depth=weight.depth, channels=weight.channels, bits=blocks.bits, size=blocks.size,
        accuracy_level=blocks.accuracy_level,
    )  # fmt: skip
    return [node("MatMulNBits", inputs, target.name, domain=CONTRIB, attributes=attributes)]
