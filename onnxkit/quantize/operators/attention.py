"""ONNX Runtime's packed `com.microsoft.Attention`, whose projections are weights inside the operator.

Only the projection becomes integer; scores and context stay float in either form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import node_input, producer
from onnxkit.quantize.formats import Format, IntegerFormat
from onnxkit.quantize.operators.base import (
    CONTRIB,
    Operator,
    Placement,
    Refusal,
    Rewriting,
    Target,
    array,
    attribute,
    float_initializer,
    int8_zero,
    node,
)
from onnxkit.quantize.operators.products import product

_CARRIED = ("num_heads", "unidirectional", "scale", "mask_filter_value")
_INPUT, _WEIGHT, _BIAS, _MASK, _PAST, _ADDITIVE = range(6)

STANDARD_OPSET = 23  # the first that has Attention


class PackedAttention(Operator):
    """`Attention(x, W [K, 3H], b [3H], mask, -, additive bias)`."""

    op_type = "Attention"
    domain = CONTRIB

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """A target when the packed weight is a float32 matrix and no past is carried."""
        weight, bias = node_input(node, _WEIGHT), node_input(node, _BIAS)
        if not float_initializer(weight, rank=2):
            return Refusal(reason="its projection is no float32 matrix in the file")
        if node_input(node, _PAST) is not None or attribute(node, "do_rotary", 0) or len(node.outputs) > 1:
            return Refusal(reason="an attention with a past or rotary embedding inside")
        if bias is not None and not float_initializer(bias, rank=1):
            return Refusal(reason="its bias is no constant vector")
        return Target(
            node=node, kind="linear", weight=weight, channel_axis=1, activation=node.inputs[0], operator=self
        )

    def opset(self, target: Target, format: Format) -> int:
        """That of the standard operator, where it is written."""
        return STANDARD_OPSET if _takes_standard(target.node, format) else super().opset(target, format)

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Write what the format asks for where it can express the node, else the projection apart."""
        old, found = target.node, context.format_of(target)
        write = _standard if _takes_standard(old, found) else _fused if _takes_fused(old, found) else _apart
        nodes = write(target, context)
        context.replace(old, old.outputs[0], nodes, nodes[-1].outputs[0])


def _takes_standard(item: ir.Node, format: Format) -> bool:
    """Whether it asks for products apart, and the mask is none or, as far as the graph tells, `[B, S]`."""
    mask = node_input(item, _MASK)
    while mask is not None and (cast := producer(mask, "Cast")) is not None:
        mask = cast.inputs[0]
    flat = mask is None or (mask.shape is not None and len(mask.shape) == 2)
    return _takes_fused(item, format) and isinstance(format, IntegerFormat) and not format.fused and flat


def _takes_fused(item: ir.Node, format: Format) -> bool:
    """Whether it is an integer product with a bias, no additive mask, and q, k and v of one width."""
    plain = node_input(item, _ADDITIVE) is None and node_input(item, _BIAS) is not None
    integer = isinstance(format, IntegerFormat) and format.style == "qoperator"
    return integer and plain and "qkv_hidden_sizes" not in item.attributes


def _fused(target: Target, context: Rewriting) -> list[ir.Node]:
    """`QAttention`: integer projection, float attention.

    On AVX2 7 % faster than a product, `Split` and `MultiHeadAttention`, to the same bits.
    """
    name, old = target.name, target.node
    x, zero = context.input_of(target), int8_zero(context, target.channels)
    codes, scales = _weight(target, context)
    bias, mask = node_input(old, _BIAS), node_input(old, _MASK)
    inputs = [x.codes, codes, bias, x.scale, scales, mask, x.zero_point, zero]
    return [node("QAttention", inputs, name, domain=CONTRIB, attributes=_carried(old))]


def _standard(target: Target, context: Rewriting) -> list[ir.Node]:
    """Three integer products and the standard `Attention`.

    `QAttention` multiplies head by head, too narrow for wide vectors, and adds its mask slowly: with AVX-512
    a layer of MiniLM's takes 8.1 ms by it, 6.9 by one product, `Split` and `Attention`, 6.6 by three.
    """
    name, old = target.name, target.node
    x, width = context.input_of(target), target.channels // 3
    zero, bias = int8_zero(context, width), array(old.inputs[_BIAS])  # type: ignore[arg-type]
    made = []
    for number, part in enumerate(("query", "key", "value")):
        third = slice(number * width, (number + 1) * width)
        codes, scales = _weight(target, context, third)
        addend = context.weights.constant(f"{name}/{part}.bias", bias[third])
        inputs = [x.codes, codes, x.scale, scales, x.zero_point, zero, addend]
        made.append(node("MatMulIntegerToFloat", inputs, f"{name}/{part}", domain=CONTRIB))
    sides = [each.outputs[0] for each in made]
    heads, scale = attribute(old, "num_heads", 1), attribute(old, "scale", 0.0)
    attributes = {
        "q_num_heads": heads, "kv_num_heads": heads, "is_causal": attribute(old, "unidirectional", 0)
    } | ({"scale": scale} if scale else {})  # fmt: skip
    mask = node_input(old, _MASK)
    if mask is None:
        return [*made, node("Attention", sides, name, attributes=attributes)]
    padded, addend = _padding(mask, old, context)
    branches = {
        "then_branch": node("Attention", [*sides, addend], f"{name}/padded", attributes=attributes),
        "else_branch": node("Attention", sides, f"{name}/unpadded", attributes=attributes),
    }
    graphs = {key: ir.Graph([], each.outputs, nodes=[each], name=each.name) for key, each in branches.items()}
    return [*made, node("If", [padded], name, attributes=graphs)]


def _weight(target: Target, context: Rewriting, part: slice | None = None) -> tuple[ir.Value, ir.Value]:
    """Codes `[K, N]` and scales `[N]` of the packed projection, or of some of its columns."""
    place: Placement = {"axis": 1, "format": context.integer(target), "layer": target.name, "part": part}
    codes = context.weights.codes(target.weight, **place, **context.rounded(target))
    return codes, context.weights.scales(target.weight, **place)


def _padding(mask: ir.Value, old: ir.Node, context: Rewriting) -> tuple[ir.Value, ir.Value]:
    """Int `[B, S]`, 1 for a token → whether there is padding, and float `[B, 1, S, S]`, 0 for a token.

    Made once for all layers that read the mask. A mask that hides nothing costs a fifth of the attention's
    time, and half of it for one text: the layers look first.
    """
    hidden = float(attribute(old, "mask_filter_value", -10000.0))
    if (mask, hidden) not in context.masks:
        name = f"{mask.name}/additive"
        constant = context.weights.constant
        one, by = (
            constant(f"onnxkit.mask.{number:g}", np.array([number], np.float32)) for number in (1.0, -hidden)
        )
        axes = constant("onnxkit.mask.axes", np.array([1, 2]))
        ones = constant("onnxkit.mask.ones", np.array([1]))
        tokens = node("Cast", [mask], f"{name}/tokens", attributes={"to": ir.DataType.FLOAT})
        least = node("ReduceMin", [tokens.outputs[0]], f"{name}/least", attributes={"keepdims": 0})
        padded = node("Less", [least.outputs[0], one], f"{name}/padded")
        padding = node("Sub", [tokens.outputs[0], one], f"{name}/padding")
        added = node("Mul", [padding.outputs[0], by], f"{name}/added")
        rows = node("Unsqueeze", [added.outputs[0], axes], f"{name}/rows")
        length = node("Shape", [mask], f"{name}/length", attributes={"start": 1, "end": 2})
        shape = node("Concat", [ones, ones, length.outputs[0], ones], f"{name}/shape", attributes={"axis": 0})
        whole = node("Expand", [rows.outputs[0], shape.outputs[0]], name)
        context.insert(old, [tokens, least, padded, padding, added, rows, length, shape, whole])
        context.masks[mask, hidden] = padded.outputs[0], whole.outputs[0]
    return context.masks[mask, hidden]


def _apart(target: Target, context: Rewriting) -> list[ir.Node]:
    """The projection as a product in the target's format, and `MultiHeadAttention` over its three parts."""
    name, old = target.name, target.node
    nodes = product(target, context, node_input(old, _BIAS))
    for item in nodes:  # the attention takes the name
        item.name = f"{name}/projection" if item.name == name else item.name
    sizes = list(attribute(old, "qkv_hidden_sizes", None) or [target.channels // 3] * 3)
    parts = context.weights.constant(
        "onnxkit.split." + "_".join(map(str, sizes)), np.asarray(sizes, dtype=np.int64)
    )
    cut = node("Split", [nodes[-1].outputs[0], parts], f"{name}/split", attributes={"axis": 2}, outputs=3)
    inputs = [*cut.outputs, None, node_input(old, _MASK), node_input(old, _ADDITIVE)]
    while inputs[-1] is None:
        inputs.pop()
    attend = node("MultiHeadAttention", inputs, name, domain=CONTRIB, attributes=_carried(old))
    return [*nodes, cut, attend]


def _carried(item: ir.Node) -> dict[str, Any]:
    return {key: item.attributes[key].value for key in _CARRIED if key in item.attributes}
