"""Half-precision graphs as float32 ones, so that a provider without their kernels can check them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_TO = ir.DataType.FLOAT


def bf16_to_fp32(model: ir.Model) -> None:
    """Replace every bfloat16 constant by its exact float32 value, and casts to bfloat16 by casts to float32.

    The weights keep the rounding of bfloat16; what is computed from them is not rounded again.
    """
    half_to_fp32(model, ir.DataType.BFLOAT16)


def half_to_fp32(model: ir.Model, half: ir.DataType, *, rounded: bool = False) -> None:
    """As `bf16_to_fp32`, for either type.

    Args:
        rounded: round each value that was half to it again, as a kernel for it would: it adds up in float32
            and rounds the result. Values must have dtypes; the graph's outputs stay as they are computed.
    """
    made = [value for node in model.graph for value in node.outputs if value.dtype == half]
    made += [value for value in model.graph.inputs if value.dtype == half]
    for graph in (model.graph, *model.graph.subgraphs()):
        _widen(graph, half)
    if rounded:
        for value in made:
            if value.uses():
                _round(model.graph, value, half)


def _widen(graph: ir.Graph, half: ir.DataType) -> None:
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == half:
            value.const_value = _widened(value.const_value)
            value.dtype = _TO
    for value in graph.inputs:
        if value.dtype == half:
            value.dtype = _TO
    for node in graph:
        for attribute in list(node.attributes.values()):
            if attribute.name in ("to", "dtype") and attribute.as_int() == half:
                node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(_TO))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == half:
                tensor = _widened(attribute.as_tensor())
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
        for output in node.outputs:
            if output.dtype == half:
                output.dtype = _TO


def _round(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    """Let the readers of a float32 value read it rounded to `half`."""
    uses, producer = list(value.uses()), value.producer()
    down = ir.node("Cast", [value], {"to": int(half)}, name=f"{value.name}/down")
    up = ir.node("Cast", down.outputs, {"to": int(_TO)}, name=f"{value.name}/up")
    for node, dtype in ((down, half), (up, _TO)):
        node.outputs[0].name, node.outputs[0].dtype = f"{node.name}:out", dtype
    if producer is None:
        graph.insert_before(graph[0], [down, up])
    else:
        graph.insert_after(producer, [down, up])
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The exact float32 values, made when they are written out."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name),
        dtype=_TO, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name,
    )  # fmt: skip
