"""Where the channels of a value are made, and whether they can be made smaller there.

`absorption` goes back from a value through operators that only move channels (Reshape, Transpose, Split,
an attention's weighted sum of values) or keep positive factors (ReLU, a gate's multiplication) to constants
that can take a factor a channel. Channels are numbered where they are made and the numbers sent along the
way (`layouts`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.graph.edit import node_input, stored_sizes
from onnxkit.quantize.codes.weights import register
from onnxkit.quantize.operators.base import CONTRIB, attribute, float_initializer
from onnxkit.quantize.operators.linear import constant_matrix
from onnxkit.quantize.smoothing.layouts import MOVES, SELECTORS, Ints, moved, selected, vector

_NORMS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    (CONTRIB, "SimplifiedLayerNormalization"): (1,),
    (CONTRIB, "SkipSimplifiedLayerNormalization"): (2,),
    (CONTRIB, "SkipLayerNormalization"): (2, 3),
}
"""Normalizations of the last axis: their inputs that are constants of one entry a channel."""

_KEEPS_FACTORS = frozenset({"Relu", "LeakyRelu", "Identity"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """An input of a node that takes factors along one axis.

    Attributes:
        node, index: which input.
        axis: of the constant; negative.
        channels: int64: the channel number of each entry of the axis.
    """

    node: ir.Node
    index: int
    axis: int
    channels: Ints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absorption:
    """Constants that together divide a value by factors of its channels.

    Attributes:
        channels: int64 `[K]`: the channel number of each position of the value's last axis; positions with
            one number (values repeated for several heads) are one channel.
        constants: what takes the division.
    """

    channels: Ints
    constants: tuple[Constant, ...]

    def divide(self, graph: ir.Graph, factors: npt.NDArray[np.float32]) -> None:
        """Divide the constants by float32 `[K]` factors, in place.

        Raises:
            ValueError: positions of one channel have different factors.
        """
        by_channel = np.ones(1 + max(int(c.channels.max()) for c in self.constants), np.float32)
        by_channel[self.channels] = factors
        if not np.array_equal(by_channel[self.channels], factors):
            raise ValueError("channels that are repeated must have one factor")
        for constant in self.constants:
            _divide(graph, constant, by_channel[constant.channels])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trace:
    """The way of channels up to a value: their layout there, what can take factors, what must stay."""

    layout: Ints
    constants: tuple[Constant, ...]
    foreign: tuple[Ints, ...] = ()

    def moved(self, layout: Ints) -> _Trace:
        return dataclasses.replace(self, layout=layout)


def absorption(value: ir.Value, depth: int) -> Absorption | None:
    """How what makes `value` can take factors on its last axis, of `depth` channels.

    The caller sees to it that every reader of `value` agrees.
    """
    found = _trace(value)
    if found is None or found.layout.size != depth:
        return None
    layout = vector(found.layout)
    if layout is None or any(np.intersect1d(layout, other).size for other in found.foreign):
        return None
    return Absorption(channels=layout, constants=found.constants)


def _trace(value: ir.Value | None) -> _Trace | None:
    """Follow a value's channels back; None where they cannot be scaled."""
    node = value.producer() if value is not None else None
    if node is None or value is None:
        return None
    if (node.domain, node.op_type) in _NORMS:
        return _norm(node, value)
    handler = _HANDLERS.get((node.domain, node.op_type))
    return handler(node, value) if handler is not None else None


def _inner(value: ir.Value | None) -> _Trace | None:
    """As `_trace`, for a value on the way: nothing else may see its channels change."""
    if value is None or value.is_graph_output():
        return None
    found, uses = _trace(value), [use for use in value.uses() if not only_shape(use.node)]
    if found is None or len(uses) == 1:
        return found
    return found if all(use.node.op_type in SELECTORS and use.idx == 0 for use in uses) else None


def only_shape(reader: ir.Node) -> bool:
    """Whether a node sees a value's shape and none of its content."""
    return reader.op_type in ("Shape", "Size") and reader.domain == ""


def _norm(node: ir.Node, value: ir.Value) -> _Trace | None:
    indices = [i for i in _NORMS[node.domain, node.op_type] if node_input(node, i) is not None]
    sizes = {stored_sizes(node.inputs[i]) for i in indices if float_initializer(node.inputs[i], rank=1)}
    if value is not node.outputs[0] or len(sizes) != 1 or not indices:
        return None
    if not all(float_initializer(node.inputs[i], rank=1) for i in indices):
        return None
    numbers = np.arange(sizes.pop()[0])
    return _Trace(
        layout=numbers,
        constants=tuple(Constant(node=node, index=i, axis=-1, channels=numbers) for i in indices),
    )


def _product(node: ir.Node, value: ir.Value) -> _Trace | None:
    """A linear layer's output channels, or the values that an attention sums."""
    weight, turned = constant_matrix(node.inputs[1]) if node.inputs[1] is not None else (None, False)
    if weight is None:
        return None
    if not weight.is_initializer():
        return _weighted_sum(node)
    reader = node.inputs[1].producer() if turned else node  # type: ignore[union-attr]
    if not float_initializer(weight, rank=2) or len(weight.uses()) > 1 or reader is None:
        return None
    if turned and len(node.inputs[1].uses()) > 1:  # type: ignore[union-attr]
        return None
    by_row = turned != bool(attribute(node, "transB", 0))
    numbers = np.arange(stored_sizes(weight)[0 if by_row else 1])
    place = Constant(node=reader, index=0 if turned else 1, axis=-2 if by_row else -1, channels=numbers)
    found = _Trace(layout=numbers, constants=(place,))
    addend = node_input(node, 2)
    return found if addend is None else _with_constant(found, node, 2)


def _weighted_sum(node: ir.Node) -> _Trace | None:
    """MatMul(probabilities, values): channels lie on the values' last axis and the leading ones."""
    if any(attribute(node, flag, 0) for flag in ("transB", "transBatchB")):
        return None
    found = _inner(node.inputs[1])
    if found is None or (found.layout.ndim > 1 and found.layout.shape[-2] != 1):
        return None
    return found


def _attention(node: ir.Node, value: ir.Value) -> _Trace | None:
    """ONNX Runtime's Attention with packed weights: the last part of its columns are the values."""
    weight, bias = node_input(node, 1), node_input(node, 2)
    if value is not node.outputs[0] or _kept(node.outputs[1:]) or node_input(node, 4) is not None:
        return None
    if not float_initializer(weight, rank=2) or len(weight.uses()) > 1:
        return None
    columns = stored_sizes(weight)[1]
    sizes = attribute(node, "qkv_hidden_sizes", None) or [columns // 3] * 3
    numbers = np.arange(columns)
    found = _Trace(layout=numbers, constants=(Constant(node=node, index=1, axis=-1, channels=numbers),))
    whole = found if bias is None else _with_constant(found, node, 2)
    return None if whole is None else whole.moved(numbers[columns - int(sizes[2]) :])


def _multi_head(node: ir.Node, value: ir.Value) -> _Trace | None:
    """MultiHeadAttention without a cache."""
    if value is not node.outputs[0] or _kept(node.outputs[1:]):
        return None
    if any(node_input(node, index) is not None for index in (3, 6, 7)):  # bias, past
        return None
    found = _inner(node_input(node, 2))
    return None if found is None or vector(found.layout) is None else found


def _grouped(node: ir.Node, value: ir.Value) -> _Trace | None:
    """GroupQueryAttention whose cache nobody keeps: each value head serves several query heads."""
    if value is not node.outputs[0] or _kept(node.outputs[1:]):
        return None
    if node_input(node, 3) is not None or node_input(node, 4) is not None:
        return None
    heads, kv_heads = int(attribute(node, "num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
    packed = node_input(node, 2) is None
    found = _inner(node.inputs[0] if packed else node.inputs[2])
    layout = None if found is None else vector(found.layout)
    if found is None or layout is None or not kv_heads:
        return None
    width = layout.size // ((heads + 2 * kv_heads) if packed else kv_heads)
    values = layout[-kv_heads * width :].reshape(kv_heads, 1, width)
    return found.moved(np.repeat(values, heads // kv_heads, axis=1).reshape(-1))


def _multiply(node: ir.Node, value: ir.Value) -> _Trace | None:
    """By constants, which take the factors; by one number; or of two values, of which one takes them."""
    for index in (1, 0):
        other = node.inputs[index]
        if float_initializer(other):
            if math.prod(stored_sizes(other)) == 1:
                return _inner(node.inputs[1 - index])
            size = stored_sizes(other)[-1]
            if size != math.prod(stored_sizes(other)):
                return None
            numbers = np.arange(size)
            place = Constant(node=node, index=index, axis=-1, channels=numbers)
            return _Trace(layout=numbers, constants=(place,))
    for index in (1, 0):
        found = _inner(node.inputs[index])
        if found is not None:
            return found
    return None


def _add(node: ir.Node, value: ir.Value) -> _Trace | None:
    """A bias takes the factors as what it is added to does."""
    for index in (1, 0):
        if float_initializer(node.inputs[index]):
            found = _inner(node.inputs[1 - index])
            return None if found is None else _with_constant(found, node, index)
    return None


def _with_constant(found: _Trace, node: ir.Node, index: int) -> _Trace | None:
    """`found` with a vector of one entry a channel among what takes the factors."""
    constant = node.inputs[index]
    layout = vector(found.layout)
    if not float_initializer(constant) or layout is None:
        return None
    if stored_sizes(constant)[-1:] != layout.shape or math.prod(stored_sizes(constant)) != layout.size:
        return None
    place = Constant(node=node, index=index, axis=-1, channels=layout)
    return dataclasses.replace(found, constants=(*found.constants, place))


def _through(node: ir.Node, value: ir.Value) -> _Trace | None:
    return _inner(node.inputs[0])


def _carried(node: ir.Node, value: ir.Value) -> _Trace | None:
    found = _inner(node.inputs[0])
    layout = None if found is None else moved(node, found.layout)
    return None if found is None or layout is None else found.moved(layout)


def _select(node: ir.Node, value: ir.Value) -> _Trace | None:
    found = _inner(node.inputs[0])
    if found is None:
        return None
    taken = selected(node, value, found.layout)
    if taken is None:
        return None
    others = []
    source = node.inputs[0]
    for reader in {use.node for use in source.uses() if not only_shape(use.node)} - {node}:  # type: ignore[union-attr]
        parts = [selected(reader, output, found.layout) for output in reader.outputs]
        if any(part is None for part in parts):
            return None
        others += [part for part in parts if part is not None]
    return _Trace(layout=taken, constants=found.constants, foreign=(*found.foreign, *others))


def last_dimension(value: ir.Value | None) -> int | None:
    """The size of a value's last axis, from its shape or from what makes it; None where unknown."""
    if value is None:
        return None
    if value.shape is not None and len(value.shape) and isinstance(value.shape[-1], int):
        return value.shape[-1]
    found = _trace(value)
    return None if found is None else int(found.layout.shape[-1])


def _divide(graph: ir.Graph, constant: Constant, divisors: npt.NDArray[np.float32]) -> None:
    value = constant.node.inputs[constant.index]
    tensor = value.const_value if value is not None else None
    if value is None or tensor is None:
        raise ValueError("a constant that takes factors is gone")
    by = divisors if constant.axis == -1 else divisors[:, None]
    large = len(tensor.shape) > 1 and constant.node.op_type != "Mul"
    made: Any = (
        ir.LazyTensor(
            lambda: ir.Tensor(tensor.numpy() / by), dtype=tensor.dtype, shape=ir.Shape(stored_sizes(value))
        )
        if large
        else ir.Tensor(tensor.numpy() / by)
    )
    if len(value.uses()) == 1 and not value.is_graph_output():
        made.name = value.name
        value.const_value = made
    else:
        constant.node.replace_input_with(constant.index, register(graph, f"{value.name}.scaled", made))


def _kept(outputs: Sequence[ir.Value]) -> bool:
    """Whether anybody reads one of the outputs."""
    return any(value.uses() or value.is_graph_output() for value in outputs)


_Handler = Callable[[ir.Node, ir.Value], _Trace | None]

_HANDLERS: dict[tuple[str, str], _Handler] = {
    ("", "MatMul"): _product,
    ("", "Gemm"): _product,
    (CONTRIB, "FusedMatMul"): _product,
    (CONTRIB, "Attention"): _attention,
    (CONTRIB, "MultiHeadAttention"): _multi_head,
    (CONTRIB, "GroupQueryAttention"): _grouped,
    ("", "Mul"): _multiply,
    ("", "Add"): _add,
    **{("", op): _through for op in _KEEPS_FACTORS},
    **{("", op): _carried for op in MOVES},
    **{("", op): _select for op in SELECTORS},
}
