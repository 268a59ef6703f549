"""The grid of least squared error, searched for each block.

Scales from 70 to 104 % of the range are tried with the two zero points next to each; each try is improved
by the scale that is best for its codes (least squares), and the best one by its zero point, too. On trained
weights that is within 1 % of an exhaustive search. The error of a weight may count by the mean square of
its input channel, which is the diagonal of the Hessian of the layer's output error.
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
    errors,
    stored_scales,
    tiles,
)
from onnxkit.quantize.codes.blocks.rtn import spanning
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

_PARTS = {4: (1.04, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7), 8: (1.0, 0.97, 0.94)}
"""Of the range, that a tried asymmetric grid covers, by bits."""

_PEAKS = {4: (-8.5, -8.0, -7.5, -7.0, -6.5, 6.5, 7.0, 7.5, 8.0), 8: (-128.0, -126.0, -122.0, 127.0, 124.0)}
"""Codes, counted from the zero, that the value of largest magnitude gets in a tried symmetric grid."""


def quantize(weight: Floats, fmt: BlockFormat, statistics: InputStatistics | None = None) -> BlockCodes:
    """Return the codes of `[N, K]`, weighted by the statistics' `mean_square` where there are some.

    Raises:
        ValueError: a weight is NaN, infinite or too large for a half-precision scale.
    """
    weight = checked(weight)
    importance = None if statistics is None else statistics.mean_square
    writer = Writer(weight.shape, bits=fmt.bits, size=fmt.size, symmetric=fmt.symmetric)
    for tile in tiles(weight, fmt.size, importance):
        writer.write(tile, searched(tile.values, tile.importance, fmt.bits, symmetric=fmt.symmetric))
    return writer.result()


def searched(values: Floats, importance: Floats | None, bits: int, *, symmetric: bool) -> Grids:
    """Grids of `[size, M]` with small sums of importance · error², never larger than `spanning`'s."""
    plain = spanning(values, bits, symmetric=symmetric)
    search = _Search(values, importance, (1 << bits) - 1)
    for scales, zeros in _symmetric(values, bits) if symmetric else _asymmetric(values, bits):
        search.consider(scales, zeros)
    search.refine(moving=not symmetric)
    found = search.best()
    worse = errors(values, found, search.highest, importance) > errors(
        values, plain, search.highest, importance
    )
    return Grids(
        scales=np.where(worse, plain.scales, found.scales), zeros=np.where(worse, plain.zeros, found.zeros)
    )


def _asymmetric(values: Floats, bits: int) -> list[tuple[Floats, Floats]]:
    highest = np.float32((1 << bits) - 1)
    low, high = np.minimum(values.min(axis=0), 0), np.maximum(values.max(axis=0), 0)
    center = low / 2 + high / 2
    found = []
    for part in _PARTS[bits]:
        scales = (high / highest - low / highest) * np.float32(part)
        below = np.floor(highest / 2 - center / np.where(scales == 0, np.float32(1), scales))
        found += [(scales, np.clip(zeros, 0, highest)) for zeros in (below, below + 1)]
    return found


def _symmetric(values: Floats, bits: int) -> list[tuple[Floats, Floats]]:
    low, high = values.min(axis=0), values.max(axis=0)
    peak = np.where(high > -low, high, low)
    middle = np.full(len(peak), 1 << (bits - 1), np.float32)
    return [(peak / np.float32(code), middle) for code in _PEAKS[bits]]


class _Search:
    """The best grid so far of each block, a column of `[size, M]`."""

    def __init__(self, values: Floats, importance: Floats | None, highest: int) -> None:
        self.highest = highest
        self._values, self._importance = values, importance
        self._weighted = values if importance is None else values * importance
        self._total = _sums(self._weighted, values)
        self._least = np.full(values.shape[1], np.inf, np.float32)
        self._scales = np.zeros(values.shape[1], np.float32)
        self._zeros = np.zeros(values.shape[1], np.float32)

    def best(self) -> Grids:
        """The best grids, their scales as they are stored."""
        return Grids(scales=stored_scales(self._scales), zeros=self._zeros)

    def consider(self, scales: Floats, zeros: Floats) -> None:
        """Choose codes, then the scale that is best for them; keep them where the error is less."""
        codes = encode(self._values, scales, zeros, self.highest)
        codes -= zeros
        along = _sums(codes, self._weighted)
        power = _sums(codes if self._importance is None else codes * self._importance, codes)
        fitted = np.where(power > 0, along / np.where(power > 0, power, 1), scales)
        left = self._total - along * fitted
        better = left < self._least
        self._least = np.where(better, left, self._least)
        self._scales = np.where(better, fitted, self._scales)
        self._zeros = np.where(better, zeros, self._zeros)

    def refine(self, *, moving: bool) -> None:
        """Once more from the best codes; `moving`: with the zero point that is best for them."""
        if not moving:
            return self.consider(self._scales, self._zeros)
        codes = encode(self._values, self._scales, self._zeros, self.highest)
        weights = np.ones_like(codes) if self._importance is None else self._importance
        weight, value = weights.sum(axis=0), self._weighted.sum(axis=0)
        code, code_code = _sums(codes, weights), _sums(codes * weights, codes)
        code_value = _sums(codes, self._weighted)
        spread = weight * code_code - code * code
        slope = weight * code_value - code * value
        usable = (spread > 0) & (slope != 0)
        scales = np.where(usable, slope / np.where(usable, spread, 1), self._scales)
        shift = np.where(usable, (code_value * code - code_code * value) / np.where(usable, slope, 1), 0)
        zeros = np.where(usable, np.clip(np.rint(shift), 0, self.highest), self._zeros)
        self.consider(scales.astype(np.float32), zeros.astype(np.float32))
        return None


def _sums(left: Floats, right: Floats) -> Floats:
    """Sum of products down each column."""
    return np.asarray(np.einsum("im,im->m", left, right), np.float32)
