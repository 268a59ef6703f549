"""GPTQ (Frantar et al. 2022) on searched grids, then descent on the layer's output error.

Column by column a code is chosen for the weight that makes the earlier columns' errors good. A block's
grid is searched when its turn comes, on the weights as they then should be, an error counting by what it
adds to the output once the later columns have done what they can (V_jj², `hessian.upper_factor`). Then,
block after block, scales are fitted (least squares in the output's error) and codes moved while that lowers
the error, as in coordinate descent. No column order by activation ("act-order"): grids that are searched on
the way need a block's columns one after the other, and the operators have no permutation of the input.

SmolLM2-135M, int4 in blocks of 32 with zero points, 8-bit head and table, KL to fp32 on prose after 10,240
tokens of Python's help: round to nearest 0.278, search 0.240, search weighted by importance 0.131, this with
the Hessian as it was seen 0.139, with `hessian.trusted` 0.099. One core: 50 s (search 11 s).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.codes.blocks.codes import BlockCodes, Floats, checked, stored_scales
from onnxkit.quantize.codes.blocks.hessian import trusted, upper_factor
from onnxkit.quantize.codes.blocks.search import searched
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

_SWEEPS = 2
_PART = 1 << 22  # weights worked on together, in whole rows
_TILE = 1 << 10  # blocks whose grids are searched together


def quantize(weight: Floats, fmt: BlockFormat, statistics: InputStatistics | None = None) -> BlockCodes:
    """Return the codes of `[N, K]`.

    Raises:
        ValueError: there is no Hessian; a weight is NaN, infinite or too large for a half-precision scale.
    """
    if statistics is None or statistics.hessian is None:
        raise ValueError("GPTQ needs the Hessian of the layer's input")
    weight = checked(weight)
    hessian = trusted(statistics.hessian)
    factor = upper_factor(hessian)
    step = max(1, _PART // weight.shape[1])
    parts = [
        _Layer(weight[start : start + step], fmt, hessian, factor).result()
        for start in range(0, len(weight), step)
    ]
    codes, scales, zeros = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return BlockCodes(
        codes=codes, scales=scales, zero_points=None if fmt.symmetric else zeros.astype(np.uint8),
        bits=fmt.bits, size=fmt.size, depth=weight.shape[1],
    )  # fmt: skip


class _Layer:
    """Some rows of a weight, turned: arrays are `[K, N]` or `[blocks, N]`, so that a column lies together.

    `_off` is weight - dequantized, and `_targets` what the weights should be, given the errors so far.
    """

    def __init__(self, weight: Floats, fmt: BlockFormat, hessian: Floats, factor: Floats) -> None:
        self._format, self._hessian = fmt, hessian
        self._highest = (1 << fmt.bits) - 1
        self._weight = np.ascontiguousarray(weight.T)
        self._codes, self._off = np.zeros_like(self._weight), np.zeros_like(self._weight)
        blocks = (-(-len(self._weight) // fmt.size), self._weight.shape[1])
        self._scales, self._zeros = np.zeros(blocks, np.float32), np.zeros(blocks, np.float32)
        self._round(factor)
        for _ in range(_SWEEPS):
            self._descend()

    def result(self) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
        """Codes `[N, blocks, size]`, scales and zero points `[N, blocks]`."""
        codes = np.repeat(self._zeros, self._format.size, axis=0)
        codes[: len(self._codes)] = self._codes
        shape = (codes.shape[1], len(self._scales), self._format.size)
        return codes.T.reshape(shape).astype(np.uint8), self._scales.T, self._zeros.T

    def _blocks(self) -> Iterator[tuple[int, slice]]:
        for number, start in enumerate(range(0, len(self._weight), self._format.size)):
            yield number, slice(start, min(start + self._format.size, len(self._weight)))

    def _round(self, factor: Floats) -> None:
        diagonal = np.asarray(factor.diagonal(), np.float32)
        share = factor / diagonal  # of an error, that column j makes good
        for number, block in self._blocks():
            made_good = share[: block.start, block].T @ self._off[: block.start]
            targets = np.asarray(self._weight[block] + made_good, np.float32)
            self._search(number, targets, np.asarray(np.square(diagonal[block]), np.float32))
            scales, zeros = self._scales[number], self._zeros[number]
            inverse = _inverse(scales)
            for column in range(block.start, block.stop):
                first = block.start
                target = targets[column - first] + share[first:column, column] @ self._off[first:column]
                codes = self._nearest(target, inverse, zeros)
                self._codes[column] = codes
                self._off[column] = self._weight[column] - (codes - zeros) * scales

    def _search(self, number: int, targets: Floats, importance: Floats) -> None:
        for start in range(0, targets.shape[1], _TILE):
            part = slice(start, start + _TILE)
            values = np.ascontiguousarray(targets[:, part])
            counts = np.repeat(importance[:, None], values.shape[1], axis=1)
            grids = searched(values, counts, self._format.bits, symmetric=self._format.symmetric)
            self._scales[number, part], self._zeros[number, part] = grids.scales, grids.zeros

    def _nearest(self, values: Floats, inverse: Floats, zeros: Floats) -> Floats:
        """Codes of one column; `values` is overwritten (thousands of small arrays: every call counts)."""
        values *= inverse
        values += zeros
        np.rint(values, out=values)
        np.maximum(values, 0, out=values)
        return np.minimum(values, self._highest, out=values)

    def _descend(self) -> None:
        """One sweep over the blocks; the output's error never grows."""
        slopes = self._hessian @ self._off  # minus half the gradient
        for number, block in self._blocks():
            before = self._off[block].copy()
            inner = self._hessian[block, block]
            slope = self._fit_scales(number, block, slopes[block], inner)
            self._move_codes(number, block, slope, inner)
            change = self._off[block] - before
            slopes[block.stop :] += self._hessian[block.stop :, block] @ change  # the others' turn is over

    def _fit_scales(self, number: int, block: slice, slope: Floats, inner: Floats) -> Floats:
        """Fit the block's scales to its codes; returns the slope afterwards."""
        scales = self._scales[number]
        codes = self._codes[block] - self._zeros[number]
        through = inner @ codes
        gain, cost = _sums(codes, slope), _sums(codes, through)
        fitted = scales + np.where(cost > 0, gain / np.where(cost > 0, cost, 1), 0)
        change = stored_scales(fitted.astype(np.float32)) - scales
        change = np.where(change * (change * cost - 2 * gain) < 0, change, 0).astype(np.float32)
        self._scales[number] = scales + change
        self._off[block] -= codes * change
        return np.asarray(slope - through * change, np.float32)

    def _move_codes(self, number: int, block: slice, slope: Floats, inner: Floats) -> None:
        scales, zeros = self._scales[number], self._zeros[number]
        inverse = _inverse(scales)
        moves = np.zeros_like(slope)
        for place, column in enumerate(range(block.start, block.stop)):
            current = slope[place] + inner[place, :place] @ moves[:place]
            current /= inner[place, place]
            current -= self._off[column]
            best = self._nearest(self._weight[column] + current, inverse, zeros)
            moves[place] = (self._codes[column] - best) * scales
            self._codes[column] = best
        self._off[block] += moves


def _inverse(scales: Floats) -> Floats:
    """1 / scale; zero for a scale of zero, whose codes are then the zero point's."""
    with np.errstate(over="ignore"):
        found = np.where(scales == 0, 0, 1 / np.where(scales == 0, 1, scales))
    return np.asarray(np.clip(found, -3e38, 3e38), np.float32)


def _sums(left: Floats, right: Floats) -> Floats:
    return np.asarray(np.einsum("kn,kn->n", left, right), np.float32)


__all__ = ["quantize"]
