"""Bias correction (Nagel et al. 2019, arXiv:1906.04721): the mean of a layer's error goes into its bias.

Rounding the weights moves the mean of every output by (W_q - W)·E[x]; calibration knows E[x].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.quantize.codes.weights import register
from onnxkit.quantize.operators import Target
from onnxkit.quantize.operators.base import array, node
from onnxkit.quantize.operators.linear import Gemm, MatMul, is_bias

Floats = npt.NDArray[np.float32]


def bias_shift(weight: Floats, dequantized: Floats, mean: Floats) -> Floats:
    """(W - W_q)·E[x], float32 `[N]`: what to add to the bias.

    Args:
        weight, dequantized: float32 `[N, K]`.
        mean: float32 `[K]`, of the layer's input as it is now (after smoothing).
    """
    return ((weight - dequantized) @ mean).astype(np.float32)


def correct_biases(model: ir.Model, targets: Sequence[Target], shifts: Mapping[str, Floats]) -> None:
    """Add each target's shift, float32 `[N]`, to its bias, in place; write an Add where there is none.

    A packed attention without a bias stays as it is.

    Args:
        shifts: by target name; targets without stay as they are.
    """
    for target in targets:
        shift = shifts.get(target.name)
        if shift is not None and target.kind == "linear":
            _add(model.graph, target, shift)


def _add(graph: ir.Graph, target: Target, shift: Floats) -> None:
    place = _bias(target)
    if place is not None:
        reader, index = place
        bias = reader.inputs[index]
        if bias is not None:
            moved = register(graph, f"{bias.name}.corrected", ir.Tensor(array(bias) + shift))
            reader.replace_input_with(index, moved)
    elif isinstance(target.operator, MatMul):
        _write_add(graph, target.node, register(graph, f"{target.name}.correction", ir.Tensor(shift)))


def _bias(target: Target) -> tuple[ir.Node, int] | None:
    """The node and the index of the input that is the bias."""
    item = target.node
    if not isinstance(target.operator, MatMul) or isinstance(target.operator, Gemm):
        constant = item.inputs[2] if len(item.inputs) > 2 else None
        if constant is not None and is_bias(constant, target.channels):
            return item, 2
    if not isinstance(target.operator, MatMul):
        return None
    bias, result = target.operator.bias(target)
    add = result.producer()
    if bias is None or add is None or add is item:
        return None
    return add, list(add.inputs).index(bias)


def _write_add(graph: ir.Graph, product: ir.Node, correction: ir.Value) -> None:
    result = product.outputs[0]
    name = result.name
    add = node("Add", [result, correction], f"{product.name}/correction")
    graph.insert_after(product, add)
    made = add.outputs[0]
    result.replace_all_uses_with(made, replace_graph_outputs=True)
    add.replace_input_with(0, result)
    result.name, made.name, made.type, made.shape = f"{name}.uncorrected", name, result.type, result.shape


__all__ = ["bias_shift", "correct_biases"]
