"""Convolutions with a constant kernel.

Static form: `QLinearConv` between QuantizeLinear and DequantizeLinear, with the output's range from
calibration. Dynamic form: `ConvInteger` and its scales; ONNX Runtime's is slower than the float operator, so
it must be asked for (`--op-types Conv`).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.edit import stored_sizes
from onnxkit.quantize.activations import QuantizedActivation, StaticActivations
from onnxkit.quantize.operators.base import (
    Operator,
    Placement,
    Refusal,
    Rewriting,
    Target,
    array,
    float_initializer,
    int8_zero,
    int32_bias,
    node,
)

_GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


class Conv(Operator):
    """`Conv(x, W [M, C/group, ...], b [M])`."""

    op_type = "Conv"
    default_for = frozenset({"static", "log"})
    possible_for = frozenset({"dynamic", "static", "log"})

    def recognize(self, node: ir.Node) -> Target | Refusal | None:
        """A target when kernel and bias are float32 constants."""
        kernel = node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if not float_initializer(kernel):
            return Refusal(reason="its kernel is no float32 constant")
        if bias is not None and not float_initializer(bias, rank=1):
            return Refusal(reason="its bias is no constant vector")
        return Target(
            node=node,
            kind="conv",
            weight=kernel,
            channel_axis=0,
            activation=node.inputs[0],
            result=node.outputs[0],
            operator=self,
        )

    def rewrite(self, target: Target, context: Rewriting) -> None:
        """Write the static or the dynamic form, as the activations are."""
        activations = context.activations_of(target)
        if not isinstance(activations, StaticActivations):
            nodes = _dynamic(target, context, context.input_of(target))
        elif context.integer(target).style == "qdq":
            nodes = _qdq(target, context, activations)
        else:
            nodes = _static(target, context, context.input_of(target), activations)
        context.replace(target.node, target.node.outputs[0], nodes, nodes[-1].outputs[0])


def _geometry(item: ir.Node) -> dict[str, object]:
    return {key: item.attributes[key].value for key in _GEOMETRY if key in item.attributes}


def _kernel(target: Target, context: Rewriting) -> tuple[ir.Value, ir.Value]:
    place: Placement = {"axis": 0, "format": context.integer(target), "layer": target.name}
    return context.weights.codes(target.weight, **place), context.weights.scales(target.weight, **place)


def _static(
    target: Target, context: Rewriting, x: QuantizedActivation, activations: StaticActivations
) -> list[ir.Node]:
    """QLinearConv, DequantizeLinear. The bias is int32 with scale x_scale * w_scale (ONNX QLinearConv)."""
    name, old = target.name, target.node
    kernel, scales = _kernel(target, context)
    y_scale, y_zero = activations.constants(old.outputs[0], layer=name, graph=context.graph)
    inputs = [
        x.codes,
        x.scale,
        x.zero_point,
        kernel,
        scales,
        int8_zero(context, target.channels),
        y_scale,
        y_zero,
    ]
    if len(old.inputs) > 2 and old.inputs[2] is not None:
        inputs.append(int32_bias(target, context, old.inputs[2], scales)[0])
    conv = node("QLinearConv", inputs, name, attributes=_geometry(old))
    return [conv, node("DequantizeLinear", [conv.outputs[0], y_scale, y_zero], f"{name}/dequantize")]


def _qdq(target: Target, context: Rewriting, activations: StaticActivations) -> list[ir.Node]:
    """Conv over dequantized sides, its output quantized and dequantized again: standard operators."""
    name, old = target.name, target.node
    kernel, scales = _kernel(target, context)
    inputs = [kernel, scales, int8_zero(context, target.channels)]
    weight = node("DequantizeLinear", inputs, f"{name}/weight", attributes={"axis": 0})
    made, sides = [weight], [context.dequantized_input_of(target), weight.outputs[0]]
    if len(old.inputs) > 2 and old.inputs[2] is not None:
        codes, scale = int32_bias(target, context, old.inputs[2], scales)
        made.append(node("DequantizeLinear", [codes, scale], f"{name}/bias", attributes={"axis": 0}))
        sides.append(made[-1].outputs[0])
    conv = node("Conv", sides, name, attributes=_geometry(old))
    y_scale, y_zero = activations.constants(old.outputs[0], layer=name, graph=context.graph)
    rounded = node("QuantizeLinear", [conv.outputs[0], y_scale, y_zero], f"{name}/quantize")
    last = node("DequantizeLinear", [rounded.outputs[0], y_scale, y_zero], f"{name}/dequantize")
    return [*made, conv, rounded, last]


def _dynamic(target: Target, context: Rewriting, x: QuantizedActivation) -> list[ir.Node]:
    """Cast(ConvInteger) * (x_scale * w_scale) + bias."""
    name, old = target.name, target.node
    kernel, scales = _kernel(target, context)
    shape = (1, target.channels, *(1 for _ in stored_sizes(target.weight)[2:]))
    spread = context.weights.constant(f"{name}.scale.spread", array(scales).reshape(shape))
    conv = node("ConvInteger", [x.codes, kernel, x.zero_point], f"{name}/integer", attributes=_geometry(old))
    cast = node("Cast", [conv.outputs[0]], f"{name}/cast", attributes={"to": ir.DataType.FLOAT.value})
    scale = node("Mul", [x.scale, spread], f"{name}/scale")
    product = node("Mul", [cast.outputs[0], scale.outputs[0]], name)
    made = [conv, cast, scale, product]
    if len(old.inputs) > 2 and old.inputs[2] is not None:
        added = context.weights.constant(f"{name}.bias.spread", array(old.inputs[2]).reshape(shape))
        made.append(node("Add", [product.outputs[0], added], f"{name}/bias"))
    return made
