"""The gated unit of a feed-forward layer, read from the graph: SwiGLU in the forms that models have it.

    G = min(gate, limit),  L = clamp(up, -limit, limit),  G · sigmoid(alpha · G) · (L + beta)

SiLU(gate) · up is alpha 1, beta 0 and no limit (arXiv:2002.05202); gpt-oss has alpha 1.702, beta 1, limit 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnxkit.graph.edit import producer, small_array


@dataclass(frozen=True, kw_only=True)
class GatedUnit:
    """A gated unit over gate and up in one value.

    Attributes:
        source: `[…,2·I]`.
        interleaved: gate and up take turns in it; otherwise all of gate comes first.
        limit: infinite where nothing is clamped.
    """

    source: ir.Value
    interleaved: bool
    alpha: float
    beta: float
    limit: float


def gated_unit(result: ir.Value | None) -> GatedUnit | None:
    """The unit that makes `result` `[…,I]`; None where that is something else."""
    product = producer(result, "Mul")
    if product is None:
        return None
    for glu, linear in (product.inputs, product.inputs[::-1]):
        gate, alpha = _glu(glu)
        up, beta = _shifted(linear)
        gate, low, high = _clamped(gate)
        up, least, most = _clamped(up)
        first, second = _half(gate, 0), _half(up, 1)
        if first is None or first != second or low != -math.inf or (least, most) != (-high, high):
            continue
        source, interleaved = first
        return GatedUnit(source=source, interleaved=interleaved, alpha=alpha, beta=beta, limit=high)
    return None


def _glu(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """g and alpha of g · sigmoid(alpha · g)."""
    product = producer(value, "Mul")
    if product is None:
        return None, 1.0
    for gate, gating in (product.inputs, product.inputs[::-1]):
        sigmoid = producer(gating, "Sigmoid")
        inner, alpha = (None, 1.0) if sigmoid is None else _with_constant(sigmoid.inputs[0], "Mul", 1.0)
        if gate is not None and inner is gate:
            return gate, alpha
    return None, 1.0


def _shifted(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """l and beta of l + beta."""
    return _with_constant(value, "Add", 0.0)


def _with_constant(value: ir.Value | None, op: str, neutral: float) -> tuple[ir.Value | None, float]:
    """What a node combines with one number, and the number; the value itself where there is no such node."""
    node = producer(value, op)
    for one, other in () if node is None else (node.inputs, node.inputs[::-1]):
        number = _number(other)
        if number is not None:
            return one, number
    return value, neutral


def _clamped(value: ir.Value | None) -> tuple[ir.Value | None, float, float]:
    """What is clamped, and between which numbers."""
    clip = producer(value, "Clip")
    if clip is None:
        return value, -math.inf, math.inf
    low, high = (clip.inputs[i] if len(clip.inputs) > i else None for i in (1, 2))
    least = -math.inf if low is None else _number(low)
    most = math.inf if high is None else _number(high)
    return (None, 0.0, 0.0) if least is None or most is None else (clip.inputs[0], least, most)


def _half(value: ir.Value | None, index: int) -> tuple[ir.Value, bool] | None:
    """What `value` is the first (0) or second (1) half of, and whether the halves are interleaved."""
    split, cut = producer(value, "Split"), producer(value, "Slice")
    if split is not None and value is split.outputs[index] and len(split.outputs) == 2 and _last(split):
        sizes = small_array(split.inputs[1]) if len(split.inputs) > 1 else None
        equal = sizes is None or sizes[0] == sizes[1]
        return (split.inputs[0], False) if equal and split.inputs[0] is not None else None
    if cut is None or cut.inputs[0] is None or len(cut.inputs) != 5:
        return None
    start, end, axis, step = (_number(each) for each in cut.inputs[1:])
    every_other = (start, step) == (index, 2) and axis in (-1, 1) and end is not None and end >= 2**31 - 1
    return (cut.inputs[0], True) if every_other else None


def _last(split: ir.Node) -> bool:
    axis = split.attributes.get("axis")
    return axis is not None and axis.as_int() in (-1, 1)


def _number(value: ir.Value | None) -> float | None:
    """A constant of one element, in any type."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type in ("Cast", "CastLike") and node.domain == "":
        value = node.inputs[0]
    found = small_array(value)
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None
