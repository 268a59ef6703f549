"""The search of llama.cpp's k-quants, as ONNX Runtime has it: weights that are large count more.

Twenty scales are tried against a minimum that is fitted with each (least squares, a weight counting
rms + |w|), then the minimum is rounded to a zero point. Two things differ from
`onnxruntime.quantization.neural_compressor`: the range always includes zero (there, a block of one sign
whose values are far from zero ends up clipped away), and a block keeps the plain grid where the rounding of
the zero point lost what the search had won. Symmetric grids are searched as `search` does it, with the same
weights.
"""

from __future__ import annotations

import numpy as np

from onnxkit.quantize.codes.blocks.codes import (
    BlockCodes,
    Floats,
    Grids,
    Writer,
    checked,
    errors,
    stored_scales,
    tiles,
)
from onnxkit.quantize.codes.blocks.rtn import spanning
from onnxkit.quantize.codes.blocks.search import searched
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

_STEPS = 20
_LEAST = np.float32(1e-30)
"""A narrower block is zeros: its scale, in half precision, is zero long before that."""


def quantize(weight: Floats, fmt: BlockFormat, statistics: InputStatistics | None = None) -> BlockCodes:
    """Return the codes of `[N, K]`; statistics are not looked at.

    Raises:
        ValueError: a weight is NaN, infinite or too large for a half-precision scale.
    """
    weight = checked(weight)
    writer = Writer(weight.shape, bits=fmt.bits, size=fmt.size, symmetric=fmt.symmetric)
    for tile in tiles(weight, fmt.size):
        values = tile.values
        importance = np.abs(values)
        importance += np.sqrt(np.einsum("im,im->m", values, values) / np.float32(len(values)))
        if fmt.symmetric:
            grids = searched(values, importance, fmt.bits, symmetric=True)
        else:
            grids = _fitted(values, importance, (1 << fmt.bits) - 1, fmt.bits)
        writer.write(tile, grids)
    return writer.result()


def _fitted(values: Floats, importance: Floats, highest: int, bits: int) -> Grids:
    low, high = np.minimum(values.min(axis=0), 0), np.maximum(values.max(axis=0), 0)
    wide = high - low > _LEAST
    span = np.where(wide, high - low, np.float32(1))
    weight, weighted = importance.sum(axis=0), importance * values
    value, total = weighted.sum(axis=0), np.einsum("im,im->m", weighted, values)
    scales, least, best = span / highest, np.full(len(low), np.inf, np.float32), low
    for step in range(-1, _STEPS):
        factor = highest if step < 0 else highest - 1 + 0.1 * step  # the plain range first
        codes = np.clip(np.rint((values - low) * (np.float32(factor) / span)), 0, highest)
        counted = codes * importance
        code, code_code = counted.sum(axis=0), np.einsum("im,im->m", counted, codes)
        code_value = np.einsum("im,im->m", counted, values)
        spread = weight * code_code - code * code
        usable = spread > 0
        spread = np.where(usable, spread, 1)
        slope = np.where(usable, (weight * code_value - value * code) / spread, span / factor)
        offset = np.where(usable, (code_code * value - code * code_value) / spread, low)
        left = total - slope * code_value - offset * value
        better = (left < least) & (slope > 0)
        least = np.where(better, left, least)
        scales, best = np.where(better, slope, scales), np.where(better, offset, best)
    stored = stored_scales(np.where(wide, scales, 0).astype(np.float32))
    zeros = np.clip(np.rint(-best / np.where(stored == 0, 1, stored)), 0, highest).astype(np.float32)
    found, plain = Grids(scales=stored, zeros=zeros), spanning(values, bits, symmetric=False)
    worse = errors(values, found, highest, importance) > errors(values, plain, highest, importance)
    return Grids(scales=np.where(worse, plain.scales, stored), zeros=np.where(worse, plain.zeros, zeros))
