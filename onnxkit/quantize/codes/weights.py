"""Weights as integers: one scale a channel, symmetric, computed block by block.

The codes of a large model are never all in memory: scales are found first, and the codes are computed
when the file is written (`onnx_ir.LazyTensor`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.quantize.formats import Grid, IntegerFormat

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

_BLOCK = 1 << 22  # elements looked at together: 16 MB of fp32
_TINY = np.float32(np.finfo(np.float32).tiny)


# To what code the divisor of a channel's scale goes.
_PEAK: dict[Grid, int] = {"full": 127, "paired": 127, "seven": 64}


def blocks(rows: int, row_elements: int) -> Iterator[slice]:
    """Slices of the first axis that hold about `_BLOCK` elements each."""
    step = max(1, _BLOCK // max(1, row_elements))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def channel_scales(weight: npt.NDArray[np.floating], axis: int, grid: Grid, *, per_channel: bool) -> Floats:
    """Return the scales of symmetric codes.

    Args:
        weight: any rank, float; a matrix for the grid "paired".
        axis: the axis whose entries are the channels.
        grid: how a channel's scale follows from its weights.
        per_channel: False gives every channel the largest scale.

    Returns:
        float32 of shape [channels]. A channel of zeros (or of denormals) gets a scale whose codes are
        all zero.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    peak = _peaks(weight, axis, paired=grid == "paired")
    if not np.isfinite(peak).all():
        raise ValueError("a weight is NaN or infinite")
    if not per_channel:
        peak[:] = peak.max(initial=0.0)
    scales = peak / np.float32(_PEAK[grid])
    return np.where(scales < _TINY, np.float32(1.0), scales)


def _peaks(weight: npt.NDArray[np.floating], axis: int, *, paired: bool) -> Floats:
    """Per channel: max |w|, or the largest |sum| of two neighbours of one sign along the other axis."""
    peak = np.zeros(weight.shape[axis], dtype=np.float32)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    for part in blocks(weight.shape[0], math.prod(weight.shape[1:])):
        found = np.asarray(weight[part.start : part.stop + (paired and axis == 1)], dtype=np.float32)
        highest = np.abs(found).max(axis=others, initial=0.0)
        if paired and found.shape[1 - axis] > 1:
            for sign in (1, -1):
                one = np.maximum(sign * found, 0)
                pairs = one[:, :-1] + one[:, 1:] if axis == 0 else one[:-1] + one[1:]
                highest = np.maximum(highest, pairs.max(axis=others))
        where = part if axis == 0 else slice(None)
        peak[where] = np.maximum(peak[where], highest)
    return peak


def codes(weight: npt.NDArray[np.floating], scales: Floats, axis: int) -> Codes:
    """Return round-half-to-even(weight / scale) clipped to [-127, 127], as int8, block by block."""
    out = np.empty(weight.shape, dtype=np.int8)
    shape = [1] * weight.ndim
    shape[axis] = -1
    for part in blocks(weight.shape[0], math.prod(weight.shape[1:])):
        scale = (scales[part] if axis == 0 else scales).reshape(shape)
        out[part] = np.clip(np.rint(np.asarray(weight[part], dtype=np.float32) / scale), -127, 127)
    return out


Rounder = Callable[[Floats, Floats], Codes]
"""(weight [N, K], scales [N]) -> codes [N, K] in [-127, 127]: what stands for rounding to the nearest."""


class WeightStore:
    """Makes the integer initializers of one graph; a weight that two nodes read is stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[object, ...], ir.Value] = {}
        self._scales: dict[tuple[object, ...], Floats] = {}

    def codes(
        self,
        weight: ir.Value,
        *,
        axis: int,
        format: IntegerFormat,
        layer: str,
        part: slice | None = None,
        turned: bool = False,
        rounder: Rounder | None = None,
    ) -> ir.Value:
        """Return the int8 codes of `weight`, transposed when `turned`, as an initializer.

        Args:
            part: of the channels; all by default.

        Raises:
            InputError: the weight holds NaN or infinity; names the tensor and the layer.
        """
        scales = self._scales_of(weight, axis, format, layer)[part or slice(None)]
        tensor = _tensor(weight)

        def compute() -> ir.TensorProtocol:
            made = _rounded(_channels(tensor.numpy(), axis, part), scales, axis, rounder)
            return ir.Tensor(np.ascontiguousarray(made.T) if turned else made)

        def lazy() -> ir.LazyTensor:
            dims = [int(d) for d in tensor.shape.numpy()]
            dims[axis] = len(scales)
            shape = ir.Shape(dims[::-1] if turned else dims)
            return ir.LazyTensor(compute, dtype=ir.DataType.INT8, shape=shape)

        suffix = "codes" + _named(part) + (".transposed" if turned else "")
        key = (*_key(weight, axis, format), format.rounding, suffix)
        return self._once(key, f"{weight.name}.{suffix}", lazy)

    def scales(
        self,
        weight: ir.Value,
        *,
        axis: int,
        format: IntegerFormat,
        layer: str,
        part: slice | None = None,
        column: bool = False,
    ) -> ir.Value:
        """Return the scales as a float32 initializer [channels], or [channels, 1] as a column."""
        found = self._scales_of(weight, axis, format, layer)[part or slice(None)]
        array = found.reshape(-1, 1) if column else found
        suffix = "scale" + _named(part)
        key = (*_key(weight, axis, format), suffix, column)
        return self._once(key, f"{weight.name}.{suffix}", lambda: ir.Tensor(array))

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """Return `array` as an initializer; the same name means the same constant."""
        return self._once((name, "constant"), name, lambda: ir.Tensor(array))

    def _scales_of(self, weight: ir.Value, axis: int, format: IntegerFormat, layer: str) -> Floats:
        key = _key(weight, axis, format)
        if key not in self._scales:
            array = _tensor(weight).numpy()
            try:
                found = channel_scales(array, axis, format.grid, per_channel=format.per_channel)
            except ValueError as error:
                message = f"cannot quantize layer '{layer}': {error} (tensor '{weight.name}')"
                raise InputError(message) from error
            self._scales[key] = found
        return self._scales[key]

    def _once(self, key: tuple[object, ...], name: str, make: Callable[[], ir.TensorProtocol]) -> ir.Value:
        if key not in self._made:
            self._made[key] = register(self._graph, name, make())
        return self._made[key]


def _key(weight: ir.Value, axis: int, format: IntegerFormat) -> tuple[object, ...]:
    return weight.name, axis, format.grid, format.per_channel


def _channels(weight: npt.NDArray[np.floating], axis: int, part: slice | None) -> npt.NDArray[np.floating]:
    return weight if part is None else weight[(slice(None),) * axis + (part,)]


def _named(part: slice | None) -> str:
    return "" if part is None else f".{part.start}-{part.stop}"


def _rounded(weight: npt.NDArray[np.floating], scales: Floats, axis: int, rounder: Rounder | None) -> Codes:
    if rounder is None:
        return codes(weight, scales, axis)
    rows = np.ascontiguousarray(weight if axis == 0 else weight.T, dtype=np.float32)
    made = rounder(rows, scales)
    return made if axis == 0 else np.ascontiguousarray(made.T)


def register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add `tensor` to the graph's initializers under `name`, made unique."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}.{count}", count + 1
    tensor.name = unique
    kind = ir.TensorType(tensor.dtype)
    value = ir.Value(name=unique, shape=ir.Shape(tensor.shape.numpy()), type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def _tensor(weight: ir.Value) -> ir.TensorProtocol:
    tensor = weight.const_value
    if tensor is None:
        raise InputError(f"the weight '{weight.name}' has no value in the file")
    return tensor
