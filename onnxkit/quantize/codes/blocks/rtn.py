"""Round to nearest: the grid spans a block's range."""

from __future__ import annotations

import numpy as np

from onnxkit.quantize.codes.blocks.codes import (
    BlockCodes,
    Floats,
    Grids,
    Writer,
    checked,
    stored_scales,
    tiles,
)
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics


def quantize(weight: Floats, fmt: BlockFormat, statistics: InputStatistics | None = None) -> BlockCodes:
    """Return the codes of `[N, K]`; statistics are not looked at.

    Raises:
        ValueError: a weight is NaN, infinite or too large for a half-precision scale.
    """
    weight = checked(weight)
    writer = Writer(weight.shape, bits=fmt.bits, size=fmt.size, symmetric=fmt.symmetric)
    for tile in tiles(weight, fmt.size):
        writer.write(tile, spanning(tile.values, fmt.bits, symmetric=fmt.symmetric))
    return writer.result()


def spanning(values: Floats, bits: int, *, symmetric: bool) -> Grids:
    """Grids over the range of each column of `[size, M]`, zero included.

    Asymmetric: scale = (max - min) / (2^bits - 1), zero point = round(-min / scale). Symmetric: the value of
    largest magnitude gets the lowest code, scale = that value / -2^(bits-1), so that all codes are used
    (as ONNX Runtime and llama.cpp do).
    """
    highest = (1 << bits) - 1
    low, high = values.min(axis=0), values.max(axis=0)
    if symmetric:
        middle = np.float32(1 << (bits - 1))
        peak = np.where(high > -low, high, low)
        return Grids(scales=stored_scales(peak / -middle), zeros=np.full(len(peak), middle, np.float32))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = stored_scales(high / highest - low / highest)
    zeros = np.rint(-low / np.where(scales == 0, np.float32(1), scales))
    return Grids(scales=scales, zeros=np.clip(zeros, 0, highest).astype(np.float32))
