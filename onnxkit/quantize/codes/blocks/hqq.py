"""Half-quadratic quantization (Badri and Shaji 2023): the error's p-norm, p = 0.7, instead of its square.

Alternates between the errors that may stand (a shrinkage of generalised soft-thresholding, their formula 8)
and the zero point that is best for the rest. Errors are counted in steps of the grid here, so that the
shrinkage means the same for weights of any size. The zero point is rounded, as the operators hold an
integer; then the scale is fitted in the same way. A symmetric grid has its scale only.
"""

from __future__ import annotations

import numpy as np

from onnxkit.quantize.codes.blocks.codes import (
    BlockCodes,
    Floats,
    Grids,
    Writer,
    checked,
    encode,
    stored_scales,
    tiles,
)
from onnxkit.quantize.codes.blocks.rtn import spanning
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

_POWER = np.float32(0.7)
_BETA, _KAPPA = 10.0, 1.01
_ROUNDS = 10


def quantize(weight: Floats, fmt: BlockFormat, statistics: InputStatistics | None = None) -> BlockCodes:
    """Return the codes of `[N, K]`; statistics are not looked at.

    Raises:
        ValueError: a weight is NaN, infinite or too large for a half-precision scale.
    """
    weight = checked(weight)
    highest = (1 << fmt.bits) - 1
    writer = Writer(weight.shape, bits=fmt.bits, size=fmt.size, symmetric=fmt.symmetric)
    for tile in tiles(weight, fmt.size):
        grids = spanning(tile.values, fmt.bits, symmetric=fmt.symmetric)
        if not fmt.symmetric:
            grids = _moved(tile.values, grids, highest)
        writer.write(tile, _scaled(tile.values, grids, highest))
    return writer.result()


def _moved(values: Floats, grids: Grids, highest: int) -> Grids:
    """Move the zero points, real numbers on the way."""
    steps = np.asarray(values / np.where(grids.scales == 0, 1, grids.scales), np.float32)
    ones, beta, zeros = np.ones(values.shape[1], np.float32), _BETA, grids.zeros
    for _ in range(_ROUNDS):
        codes = encode(steps, ones, zeros, highest)
        standing = _shrunk(steps - (codes - zeros), beta)
        zeros = np.asarray((codes - (steps - standing)).mean(axis=0), np.float32)
        beta *= _KAPPA
    return Grids(scales=grids.scales, zeros=np.clip(np.rint(zeros), 0, highest))


def _scaled(values: Floats, grids: Grids, highest: int) -> Grids:
    """Fit the scales to what the standing errors leave."""
    beta, scales = _BETA, grids.scales
    for _ in range(_ROUNDS):
        codes = encode(values, scales, grids.zeros, highest) - grids.zeros
        step = np.asarray(np.where(scales == 0, 1, scales), np.float32)
        off = np.asarray((values - codes * scales) / step, np.float32)
        kept = values - step * _shrunk(off, beta)
        power = np.einsum("im,im->m", codes, codes)
        along = np.einsum("im,im->m", codes, kept)
        fitted = np.where((power > 0) & (along != 0), along / np.where(power > 0, power, 1), scales)
        scales = np.asarray(fitted, np.float32)
        beta *= _KAPPA
    return Grids(scales=stored_scales(scales), zeros=grids.zeros)


def _shrunk(off: Floats, beta: float) -> Floats:
    """sign(x) · max(0, |x| - |x|^(p-1) / beta)."""
    size = np.abs(off)
    size += np.float32(1e-8)
    threshold = np.exp((_POWER - 1) * np.log(size)) * np.float32(1 / beta)
    size -= threshold
    return np.copysign(np.maximum(size, 0, out=size), off)
