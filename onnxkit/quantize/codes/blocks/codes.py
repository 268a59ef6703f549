"""What an algorithm of blocks gives, and how weights are walked through: arrays only, no graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_TILE = 1 << 15  # weights looked at together: with its temporaries a tile stays in the second-level cache
_LARGEST_SCALE = float(np.finfo(np.float16).max)
_SMALLEST_SCALE = np.float32(np.finfo(np.float16).smallest_subnormal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCodes:
    """A weight `[N, K]` as codes: weight ≈ (code - zero point) · scale of its block.

    Attributes:
        codes: uint8 `[N, blocks, size]`, 0 to 2^bits - 1; padding has the zero point's code.
        scales: float32 `[N, blocks]`, each of them a float16: what is stored is what the codes were chosen
            for. May be negative (symmetric grids, whose codes reach further below zero) or zero.
        zero_points: uint8 `[N, blocks]`; None: 2^(bits - 1) everywhere.
        bits: of a code, 4 or 8.
        size: weights in a block.
        depth: K; the last block is padded where it is no multiple of `size`.
    """

    codes: Bytes
    scales: Floats
    zero_points: Bytes | None
    bits: int
    size: int
    depth: int

    def dequantized(self) -> Floats:
        """The weights that a product computes with, float32 `[N, K]`."""
        zeros = np.float32(1 << (self.bits - 1))
        shift = zeros if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        values = self.codes.astype(np.float32)
        values -= shift
        values *= self.scales[..., None]
        return values.reshape(len(values), -1)[:, : self.depth]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grids:
    """Of some blocks: scales and zero points, float32 `[M]`; the scales are such that are stored."""

    scales: Floats
    zeros: Floats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """Some rows' blocks, a block a column: reductions over a block are then sums of long rows.

    Attributes:
        rows: of the weight.
        values: float32 `[size, M]`, M = rows · blocks; zero in the padding.
        importance: float32 `[size, M]`, what a squared error counts; None: all the same.
    """

    rows: slice
    values: Floats
    importance: Floats | None


def checked(weight: Array) -> Floats:
    """Return `weight` as float32. Raises ValueError: it holds NaN or infinity."""
    found = np.asarray(weight, dtype=np.float32)
    if not np.isfinite(found).all():
        raise ValueError("a weight is NaN or infinite")
    return found


def tiles(weight: Floats, size: int, importance: Floats | None = None) -> Iterator[Tile]:
    """Walk through `[N, K]` in tiles of whole rows; `importance` is [K], finite and not negative.

    A hundredth of the mean importance is added to all: channels that the samples did not stir still count.
    """
    rows, depth = weight.shape
    blocks = -(-depth // size)
    spread = None
    if importance is not None and importance.any():
        spread = np.zeros(blocks * size, np.float32)
        spread[:depth] = importance / importance.mean(dtype=np.float64) + 0.01
        spread = spread.reshape(blocks, size).T
    step = max(1, _TILE // (blocks * size))
    for start in range(0, rows, step):
        part = weight[start : start + step]
        if depth % size:
            part = np.pad(part, ((0, 0), (0, blocks * size - depth)))
        values = np.ascontiguousarray(part.reshape(-1, size).T)
        weights = None if spread is None else np.tile(spread, (1, len(part)))
        yield Tile(rows=slice(start, start + len(part)), values=values, importance=weights)


def stored_scales(scales: Floats) -> Floats:
    """Round to what is stored, float16; a scale that is not zero stays so.

    Raises:
        ValueError: one is larger than float16 holds.
    """
    if np.abs(scales).max(initial=0.0) > _LARGEST_SCALE:
        raise ValueError(f"a weight is too large for half-precision scales (above {_LARGEST_SCALE:.0f} each)")
    rounded = scales.astype(np.float16).astype(np.float32)
    lost = (rounded == 0) & (scales != 0)
    return np.where(lost, np.copysign(_SMALLEST_SCALE, scales), rounded).astype(np.float32)


def encode(values: Floats, scales: Floats, zeros: Floats, highest: int) -> Floats:
    """Nearest codes of `[size, M]` (ties to even) as float32; a scale of zero gives the zero point's code."""
    with np.errstate(divide="ignore", over="ignore"):
        turned = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
    turned = np.clip(turned, -3e38, 3e38)
    with np.errstate(over="ignore"):
        codes = values * turned
    codes += zeros
    np.rint(codes, out=codes)
    return np.clip(codes, 0, highest, out=codes)


def errors(values: Floats, grids: Grids, highest: int, importance: Floats | None) -> Floats:
    """Sum over each block of importance · (dequantized - value)², float32 [M]."""
    off = encode(values, grids.scales, grids.zeros, highest)
    off -= grids.zeros
    off *= grids.scales
    off -= values
    off *= off
    if importance is not None:
        off *= importance
    return np.asarray(off.sum(axis=0), np.float32)


class Writer:
    """Fills the codes of a weight `[N, K]` a tile at a time."""

    def __init__(self, shape: tuple[int, ...], *, bits: int, size: int, symmetric: bool) -> None:
        rows, self._depth = shape
        blocks = -(-self._depth // size)
        self._bits, self._size = bits, size
        self._codes = np.empty((rows, blocks, size), np.uint8)
        self._scales = np.empty((rows, blocks), np.float32)
        self._zeros = None if symmetric else np.empty((rows, blocks), np.uint8)

    def write(self, tile: Tile, grids: Grids) -> None:
        """Encode a tile on its grids."""
        rows = self._scales[tile.rows]
        codes = encode(tile.values, grids.scales, grids.zeros, (1 << self._bits) - 1)
        self._codes[tile.rows] = codes.T.reshape(*rows.shape, self._size)
        rows[:] = grids.scales.reshape(rows.shape)
        if self._zeros is not None:
            self._zeros[tile.rows] = grids.zeros.reshape(rows.shape)

    def result(self) -> BlockCodes:
        """What was written."""
        return BlockCodes(
            codes=self._codes, scales=self._scales, zero_points=self._zeros,
            bits=self._bits, size=self._size, depth=self._depth,
        )  # fmt: skip
