"""Matrix products with a constant right side: MatMul, Gemm, FusedMatMul.

`products` writes them. Products of two activations (attention's own) are never touched.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.edit import stored_sizes
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Refusal,
    Rewriting,
    Target,
    attribute,
    float_initializer,
    is_tied,
    only_consumer,
)
from onnxkit.quantize.operators.products import product

TWO_ACTIVATIONS = "both sides are activations"


class MatMul(Operator):
    """`MatMul(x, W)` with `W` [K, N], or `MatMul(x, Transpose(W))` with `W` [N, K]."""

    op_type = "MatMul"

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
        """Write the product in the target's format."""
        bias, result = self.bias(target)
        nodes = product(target, context, bias)
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
    return float_initializer(value, rank=1) and stored_sizes(value) == (channels,)


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
