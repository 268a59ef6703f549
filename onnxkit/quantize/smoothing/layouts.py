"""Where the channels of a value stand after an operator that only moves them.

A layout is an int64 array of channel numbers over a value's trailing axes, with size 1 where an axis is no
channel. A layout of one axis is a product's or a normalization's, whose rank is not known; one of several
axes shows all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.graph.edit import node_input, small_array
from onnxkit.quantize.operators.base import attribute

Ints = npt.NDArray[np.int64]


def moved(node: ir.Node, layout: Ints) -> Ints | None:
    """The layout of the output of Reshape, Transpose, Squeeze or Unsqueeze; None where it cannot be told."""
    return _MOVES[node.op_type](node, layout)


def _reshape(node: ir.Node, layout: Ints) -> Ints | None:
    shape = target_shape(node)
    if shape is None:
        return None
    while layout.ndim > 1 and layout.shape[0] == 1:
        layout = layout[0]
    if layout.ndim > 1 and 1 in layout.shape:
        return None  # an axis that is no channel may lie between
    for start in range(len(shape) - 1, -1, -1):
        tail = [layout.size if size == -1 and start == len(shape) - 1 else size for size in shape[start:]]
        if any(size is None or size <= 0 for size in tail):
            return None
        if math.prod(tail) == layout.size:  # type: ignore[arg-type]
            return _padded(layout.reshape(tail), len(shape))  # type: ignore[arg-type]
    return None


def _transpose(node: ir.Node, layout: Ints) -> Ints | None:
    order = attribute(node, "perm", None)
    if order is None or len(order) < layout.ndim:
        return None
    return _padded(layout, len(order)).transpose(list(order))


def _unsqueeze(node: ir.Node, layout: Ints) -> Ints | None:
    axes = small_array(node_input(node, 1))
    if axes is None or layout.ndim < 2:
        return None
    return np.expand_dims(layout, tuple(int(axis) for axis in axes.reshape(-1)))


def _squeeze(node: ir.Node, layout: Ints) -> Ints | None:
    axes, rank = small_array(node_input(node, 1)), layout.ndim
    if axes is None or rank < 2:
        return None
    where = tuple(int(axis) for axis in axes.reshape(-1))
    if any(not -rank <= axis < rank or layout.shape[axis] != 1 for axis in where):
        return None
    return np.squeeze(layout, where)


def selected(node: ir.Node, value: ir.Value, layout: Ints) -> Ints | None:
    """The layout of an output of Split, Gather or Slice; None where it cannot be told."""
    return {"Split": _split, "Gather": _gather, "Slice": _slice}[node.op_type](node, value, layout)


def _split(node: ir.Node, value: ir.Value, layout: Ints) -> Ints | None:
    sizes, count = small_array(node_input(node, 1)), len(node.outputs)
    axis = int(attribute(node, "axis", 0))
    if layout.ndim == 1 and axis > 0 and sizes is not None and sizes.sum() == layout.size:
        axis = -1  # of a product whose rank is not known: sizes that add up to its channels
    where = _axis(axis, layout)
    if where is None:
        return None
    size = layout.shape[where]
    parts = [size // count] * count if sizes is None else [int(part) for part in sizes]
    if sum(parts) != size:
        return None
    return np.split(layout, np.cumsum(parts)[:-1], axis=where)[list(node.outputs).index(value)]


def _gather(node: ir.Node, value: ir.Value, layout: Ints) -> Ints | None:
    index, where = small_array(node_input(node, 1)), _axis(int(attribute(node, "axis", 0)), layout)
    if index is None or index.ndim > 1 or where is None:
        return None
    size = layout.shape[where]
    if size == 1 or index.min(initial=0) < -size or index.max(initial=0) >= size:
        return None
    taken: Ints = np.take(layout, index, axis=where)
    return taken


def _slice(node: ir.Node, value: ir.Value, layout: Ints) -> Ints | None:
    starts, ends, axes, steps = (small_array(node_input(node, place)) for place in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or starts.size != 1:
        return None
    where = _axis(int(axes.reshape(-1)[0]), layout)
    if where is None or layout.shape[where] == 1:
        return None
    step = 1 if steps is None else int(steps.reshape(-1)[0])
    place: list[Any] = [slice(None)] * layout.ndim
    place[where] = slice(int(starts.reshape(-1)[0]), int(ends.reshape(-1)[0]), step)
    part: Ints = layout[tuple(place)]
    return part


def _axis(axis: int, layout: Ints) -> int | None:
    """An axis counted from the end; None where the layout does not show it.

    A layout of one axis is a product's, of unknown rank; one of several shows all of them (`_reshape`).
    """
    if axis >= 0:
        axis = axis - layout.ndim if layout.ndim > 1 else 0
    return axis if -layout.ndim <= axis < 0 else None


def vector(layout: Ints) -> Ints | None:
    """A layout whose channels all lie on the last axis, as a vector."""
    return layout.reshape(-1) if layout.ndim and layout.shape[-1] == layout.size else None


def _padded(layout: Ints, rank: int) -> Ints:
    return layout.reshape((1,) * (rank - layout.ndim) + layout.shape)


def target_shape(reshape: ir.Node) -> list[int | None] | None:
    """What a Reshape makes: sizes, 0 and -1 as written, None for those computed in the graph."""
    shape = node_input(reshape, 1)
    known = small_array(shape)
    if known is not None:
        return [int(size) for size in known.reshape(-1)]
    producer = shape.producer() if shape is not None else None
    if producer is None or producer.op_type != "Concat":
        return None
    sizes: list[int | None] = []
    for part in producer.inputs:
        array = small_array(part)
        sizes += [None] if array is None else [int(size) for size in array.reshape(-1)]
    return sizes


_MOVES: dict[str, Callable[[ir.Node, Ints], Ints | None]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}

MOVES = frozenset(_MOVES)
SELECTORS = frozenset({"Split", "Gather", "Slice"})
