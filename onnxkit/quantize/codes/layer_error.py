"""The error that a format makes in one layer's output, from its weight and what its input looked like."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxkit.graph.nbits import dequantize, unpack_codes, unpack_zero_points
from onnxkit.quantize.codes.codebook import CodeBook
from onnxkit.quantize.codes.logarithm import quantize as log_codes
from onnxkit.quantize.codes.weights import channel_scales, codes
from onnxkit.quantize.formats import BlockFormat, Format, IntegerFormat, LogFormat
from onnxkit.quantize.operators.base import Target, array, blocked_tensor

Array = np.ndarray[Any, Any]


def layer_error(target: Target, format: Format, book: CodeBook) -> float:
    """tr(ΔW H ΔWᵀ): the mean squared error of the layer's output, summed over its channels.

    H is the mean of x xᵀ over the calibration set; its diagonal or the identity where no more is known.
    """
    rows = weight_rows(target)
    off = decoded(target, format, book) - rows
    seen = book.statistics.get(target.name)
    if seen is None:
        return float(np.einsum("nk,nk->", off, off, dtype=np.float64))
    if seen.hessian is None:
        return float(np.einsum("nk,nk,k->", off, off, seen.mean_square, dtype=np.float64))
    return float(np.einsum("nk,nk->", off @ seen.hessian, off, dtype=np.float64))


def decoded(target: Target, format: Format, book: CodeBook) -> Array:
    """What is stored of a target's weight, as float32 `[N, K]`."""
    rows = weight_rows(target)
    match format:
        case IntegerFormat():
            scales = channel_scales(rows, 0, format.grid, per_channel=format.per_channel)
            rounder = book.rounder(target.name, format)
            found = codes(rows, scales, 0) if rounder is None else rounder(rows, scales)
            return found * scales[:, None]
        case LogFormat():
            return log_codes(rows, format.bits, format.size).dequantized()
        case BlockFormat():
            packed = book.packed(blocked_tensor(target), format)
            zeros = packed.zero_points
            points = None if zeros is None else unpack_zero_points(zeros, packed.scales.shape[1], format.bits)
            return dequantize(
                unpack_codes(packed.codes, format.bits), packed.scales, points,
                bits=format.bits, depth=rows.shape[1],
            )  # fmt: skip


def weight_rows(target: Target) -> Array:
    """The weight as float32 `[N, K]`."""
    weight = array(target.weight).astype(np.float32, copy=False)
    return np.ascontiguousarray(np.moveaxis(weight, target.channel_axis, 0).reshape(target.channels, -1))
