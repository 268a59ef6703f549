"""Weights as signed fractional powers of two, with a scale for each block of them.

A code is a sign and a level: `weight ≈ ± scale · 2^(-(n - level) / steps)` with `n = 2^(bits-1) - 1`, and 0
for level 0. Steps are `STEPS` an octave: with 4 bits, 7 levels down to 1/8 of the scale; with 8 bits, 127
levels down to 1/79. (Miyashita et al. 2016, arXiv:1603.01025, who use whole and half octaves; Zhou et al.
2017, arXiv:1702.03044, have one code for zero.) On normally distributed weights in blocks of 32 that is 20.8
and 41.1 dB of signal over noise; whole octaves in 4 bits are 15.9.

Codes are found for the smallest squared error: a weight goes to the nearest level (of two as near, to the
smaller), and a block's scale is the best of a few, each refined by least squares.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.codes.weights import blocks

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Bits = Literal[4, 8]

STEPS: dict[Bits, int] = {4: 2, 8: 20}
"""Levels an octave. Fewer waste levels on weights too small to matter, more leave out those that do."""

_TRIED = tuple(2.0 ** (quarter / 4) for quarter in range(-6, 2))
"""Scales to try, in parts of the largest magnitude, to the power of 1 / steps of an octave."""

_LARGEST = float(np.finfo(np.float16).max)
_TINY = np.float32(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogCodes:
    """A matrix of weights in codes.

    Attributes:
        packed: uint8 `[N, blocks, size * bits / 8]`; with 4 bits, the first of two codes in the low half. A
            code is `level`, plus `2^(bits-1)` where the weight is negative. The last block is filled with 0.
        scales: float16 `[N, blocks]`.
        bits: of a code.
        depth: weights of a row, K.
    """

    packed: Bytes
    scales: npt.NDArray[np.float16]
    bits: Bits
    depth: int

    def dequantized(self) -> Floats:
        """float32 `[N, K]`: exactly what the graph decodes."""
        values = byte_values(self.bits)[self.packed] * self.scales[..., None, None].astype(np.float32)
        found: Floats = values.reshape(len(self.packed), -1)[:, : self.depth]
        return found


@functools.cache
def levels(bits: Bits) -> Floats:
    """Return the magnitudes of the levels, ascending from 0 to 1: float32 `[2^(bits-1)]`."""
    count = 2 ** (bits - 1) - 1
    powers = 2.0 ** (-np.arange(count - 1, -1, -1) / STEPS[bits])
    return np.concatenate([[0.0], powers]).astype(np.float32)


def byte_values(bits: Bits) -> Floats:
    """Return what each byte stands for before it is scaled: float32 `[256, 8 / bits]`."""
    magnitudes = levels(bits)
    values = np.concatenate([magnitudes, -magnitudes])
    codes = np.arange(256)
    parts = [codes] if bits == 8 else [codes & 15, codes >> 4]
    return np.stack([values[part] + np.float32(0.0) for part in parts], axis=-1)


def check(weight: npt.NDArray[np.floating[Any]]) -> None:
    """Raise ValueError for weights that are NaN, infinite, or so large that no float16 scale holds them."""
    for part in blocks(len(weight), weight[:1].size):
        most = np.abs(weight[part]).max(initial=0.0)
        if not np.isfinite(most):
            raise ValueError("a weight is NaN or infinite")
        if most > _LARGEST:
            raise ValueError(f"a weight of {most:.3g} is more than a float16 scale holds")


def quantize(weight: npt.NDArray[np.floating[Any]], bits: Bits, size: int) -> LogCodes:
    """Return the codes of `[N, K]` weights in blocks of `size` along K, some rows at a time.

    Raises:
        ValueError: as `check`.
    """
    check(weight)
    rows, depth = weight.shape
    count = -(-depth // size)
    packed = np.empty((rows, count, size * bits // 8), np.uint8)
    scales = np.empty((rows, count), np.float16)
    for part in blocks(rows, depth):
        found = np.asarray(weight[part], dtype=np.float32)
        padded = np.pad(found, ((0, 0), (0, count * size - depth))).reshape(-1, size)
        scale = _scales(np.abs(padded), bits)
        scales[part] = scale.reshape(-1, count)
        packed[part] = _packed(padded, scale, bits).reshape(-1, *packed.shape[1:])
    return LogCodes(packed=packed, scales=scales, bits=bits, depth=depth)


def _scales(sizes: Floats, bits: Bits) -> npt.NDArray[np.float16]:
    """The scale of each block `[blocks, size]` of magnitudes, as it is stored: `[blocks, 1]`.

    With the levels m of a tried scale, the best scale is Σ w·m / Σ m², which leaves Σ w² - (Σ w·m)² / Σ m².
    """
    peak = sizes.max(axis=1, keepdims=True, initial=0.0)
    best, most = peak, np.zeros_like(peak)
    for part in _TRIED:
        made = levels(bits)[_nearest(sizes, peak * np.float32(part ** (1 / STEPS[bits])), bits)]
        shared = np.einsum("ij,ij->i", sizes, made)[:, None]
        power = np.maximum(np.einsum("ij,ij->i", made, made)[:, None], _TINY)
        explained = shared * (shared / power)
        better = explained > most
        best, most = np.where(better, shared / power, best), np.where(better, explained, most)
    stored: npt.NDArray[np.float16] = np.minimum(best, _LARGEST).astype(np.float16)
    return stored


def _nearest(sizes: Floats, scale: npt.NDArray[np.floating[Any]], bits: Bits) -> Bytes:
    """The nearest level of each magnitude; of two as near, the smaller.

    Searched by the leading 16 bits of the float, which leave two levels at most, and one comparison.
    """
    wide = scale.astype(np.float32)
    ratio = np.divide(sizes, wide, out=np.zeros_like(sizes), where=wide > 0)
    first, middles = _search(bits)
    found: Bytes = first[ratio.view(np.uint32) >> 15]
    found += ratio > middles[found]
    return found


@functools.cache
def _search(bits: Bits) -> tuple[Bytes, Floats]:
    """The level of the least float with each leading 16 bits, and what is halfway above each level."""
    known = levels(bits)
    middles = (known[1:] + known[:-1]) / 2
    starts = (np.arange(1 << 16, dtype=np.uint32) << 15).view(np.float32)
    return np.searchsorted(middles, starts).astype(np.uint8), np.append(middles, np.float32(np.inf))


def _packed(weight: Floats, scale: npt.NDArray[np.float16], bits: Bits) -> Bytes:
    level = _nearest(np.abs(weight), scale, bits)
    codes = level + ((weight < 0) & (level > 0)).astype(np.uint8) * np.uint8(2 ** (bits - 1))
    return codes if bits == 8 else codes[:, ::2] | (codes[:, 1::2] << 4)


__all__ = ["STEPS", "Bits", "LogCodes", "byte_values", "check", "levels", "quantize"]
