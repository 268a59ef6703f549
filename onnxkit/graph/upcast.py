"""bfloat16 graphs as float32 ones, so that a provider without bfloat16 kernels can check them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FROM, _TO = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def bf16_to_fp32(model: ir.Model) -> None:
    """Replace every bfloat16 constant by its exact float32 value, and casts to bfloat16 by casts to float32.

    The weights keep the rounding of bfloat16; what is computed from them is not rounded again.
    """
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _FROM:
            value.const_value = _widened(value.const_value)
            value.dtype = _TO
    for value in model.graph.inputs:
        if value.dtype == _FROM:
            value.dtype = _TO
    for node in model.graph:
        for attribute in list(node.attributes.values()):
            if attribute.name in ("to", "dtype") and attribute.as_int() == _FROM:
                node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(_TO))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FROM:
                tensor = _widened(attribute.as_tensor())
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
        for output in node.outputs:
            if output.dtype == _FROM:
                output.dtype = _TO


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)
