"""Matrix products with a constant right side: MatMul, Gemm, FusedMatMul.

Integer form: u8 activation x s8 weight -> float in one operator, `com.microsoft.MatMulIntegerToFloat`, with
a bias that follows folded in. The output stays float: quantizing it as well took a MiniLM from cosine 0.97
to 0.84. Weight-only form: `com.microsoft.MatMulNBits`. Products of two activations (attention's own) are
never touched.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Placement,
    Refusal,
    Rewriting,
    Target,
    attribute,
    dims,
    float_initializer,
    int8_zero,
    is_tied,
    node,
    only_consumer,
)

TWO_ACTIVATIONS = "both sides are activations"


class MatMul(Operator):
    """`MatMul(x, W)` with `W` [K, N], or `MatMul(x, Transpose(W))` with `W` [N, K]."""

    op_type = "MatMul"
    default_for = frozenset({"dynamic", "static", "float"})

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """A target when the right side is a float32 matrix in the file."""
        left, right = node.inputs[0], node.inputs[1]
        if left is None or right is None:
            return None
        weight, turned = constant_matrix(right)
        if not weight.is_initializer():
            return Refusal(reason=TWO_ACTIVATIONS)
        if not float_initializer(weight, rank=2):
            return Refusal(reason="the right side is no float32 matrix")
        axis = 0 if turned != self.transposes(node) else 1
        return Target(
            node=node,
            kind="linear",
            weight=weight,
            channel_axis=axis,
            activation=left,
            operator=self,
            tied=is_tied(weight),
        )

    def transposes(self, node: ir.Node) -> bool:
        """Whether the operator itself transposes its right side."""
        return False

    def bias(self, target: Target) -> tuple[ir.Value | None, ir.Value]:
        """The bias to fold in and the value that holds the result with it."""
        return following_bias(target)

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Write MatMulIntegerToFloat over the shared quantized input, or MatMulNBits over the float one."""
        bias, result = self.bias(target)
        write = integer_matmul if context.blocks is None else blockwise_matmul
        nodes = write(target, context, bias)
        context.replace(target.node, result, nodes, nodes[-1].outputs[0])


class Gemm(MatMul):
    """`Gemm(x, W, c)` of unscaled, untransposed x; `W` [K, N], or [N, K] with transB."""

    op_type = "Gemm"

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """As MatMul, with the forms refused that the integer operator cannot express."""
        if (
            attribute(node, "transA", 0)
            or attribute(node, "alpha", 1.0) != 1.0
            or attribute(node, "beta", 1.0) != 1.0
        ):
            return Refusal(reason="a scaled or left-transposed Gemm")
        found = super().recognize(node)
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        if isinstance(found, Target) and addend is not None and not is_bias(addend, found.channels):
            return Refusal(reason="its addend is no constant vector")
        return found

    def transposes(self, node: ir.Node) -> bool:
        """The attribute transB."""
        return bool(attribute(node, "transB", 0))

    def bias(self, target: Target) -> tuple[ir.Value | None, ir.Value]:
        """Gemm's own addend, else one that follows."""
        addend = target.node.inputs[2] if len(target.node.inputs) > 2 else None
        return following_bias(target) if addend is None else (addend, target.node.outputs[0])


class FusedMatMul(MatMul):
    """ONNX Runtime's MatMul with transposition flags and a factor."""

    op_type = "FusedMatMul"
    domain = CONTRIB

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """As MatMul, where only transB is used."""
        found = super().recognize(node)
        flags = ("transA", "transBatchA", "transBatchB")
        plain = attribute(node, "alpha", 1.0) == 1.0 and not any(attribute(node, flag, 0) for flag in flags)
        if isinstance(found, Target) and not plain:
            return Refusal(reason="a scaled or left-transposed product")
        return found

    def transposes(self, node: ir.Node) -> bool:
        """The attribute transB."""
        return bool(attribute(node, "transB", 0))


def constant_matrix(right: ir.Value) -> tuple[ir.Value, bool]:
    """Look through `Transpose(W)`: return (W, True), or (the value itself, False)."""
    producer = right.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        source = producer.inputs[0]
        if float_initializer(source, rank=2) and list(attribute(producer, "perm", (1, 0))) == [1, 0]:
            return source, True
    return right, False


def is_bias(value: ir.Value, channels: int) -> bool:
    """Whether the value is a constant vector with one entry a channel."""
    return float_initializer(value, rank=1) and dims(value) == (channels,)


def following_bias(target: Target) -> tuple[ir.Value | None, ir.Value]:
    """Find `Add(product, b)` with a constant vector `b`; return (b or None, the value with the result)."""
    result = target.node.outputs[0]
    add = only_consumer(result)
    if add is None or add.op_type != "Add" or add.domain != "":
        return None, result
    other = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
    if other is None or not is_bias(other, target.channels):
        return None, result
    return other, add.outputs[0]


def integer_matmul(target: Target, context: Rewriting, bias: ir.Value | None) -> list[ir.Node]:
    """The nodes of u8 x s8 -> float for `target`; the last one's output is the result.

    A weight stored as [N, K] is written transposed, unless a lookup reads it too: then one copy is stored
    and a Transpose, which ONNX Runtime folds when it loads the file, stands before the product.
    """
    name, by_row = target.name, target.channel_axis == 0
    place: Placement = {"axis": target.channel_axis, "grid": context.grids.products, "layer": name}
    tied = by_row and target.tied
    matrix = context.weights.codes(target.weight, turned=by_row and not tied, **place)
    scales = context.weights.scales(target.weight, **place)
    made: list[ir.Node] = []
    if tied:
        made.append(node("Transpose", [matrix], f"{name}/transpose_weight", attributes={"perm": [1, 0]}))
        matrix = made[0].outputs[0]
    x = context.rows_of(target)
    inputs = [x.codes, matrix, x.scale, scales, x.zero_point, int8_zero(context, target.channels)]
    if x.rows is None:
        inputs += [] if bias is None else [bias]
        return [*made, node("MatMulIntegerToFloat", inputs, name, domain=CONTRIB)]
    product = node("MatMulIntegerToFloat", inputs, f"{name}/product", domain=CONTRIB)
    made += [product, node("Mul", [product.outputs[0], x.rows], name)]
    return made if bias is None else [*made, node("Add", [made[-1].outputs[0], bias], f"{name}/bias")]


def blockwise_matmul(target: Target, context: Rewriting, bias: ir.Value | None) -> list[ir.Node]:
    """MatMulNBits: float input, weights in blocks. A head tied to the embedding gets a copy of its own."""
    store = context.blocks
    if store is None:
        raise ValueError("no blocks to write in")
    weight = store.blocked(target.weight, turned=target.channel_axis == 0, layer=target.name)
    inputs: list[ir.Value | None] = [target.node.inputs[0], weight.codes, weight.scales, weight.zero_points]
    inputs += [None, bias]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {
        "K": weight.depth, "N": weight.channels, "bits": store.blocks.bits, "block_size": store.blocks.size,
    }  # fmt: skip
    if store.blocks.accuracy_level:
        attributes["accuracy_level"] = store.blocks.accuracy_level
    return [node("MatMulNBits", inputs, target.name, domain=CONTRIB, attributes=attributes)]
