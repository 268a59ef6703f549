"""Weights in blocks, as `com.microsoft` MatMulNBits and GatherBlockQuantized store and read them.

A weight `[N, K]` (N outputs, K the depth of the product) is cut along K into `ceil(K / size)` blocks; the
last one is padded. A code is an unsigned integer of 4 or 8 bits; a block has a scale and, unless the grid is
symmetric, a zero point, another code:

    weight[n, k] = (code[n, k] - zero_point[n, k // size]) · scale[n, k // size]

Without zero points the zero is the middle, 2^(bits-1). Codes of 4 bits lie two in a byte, the first in the
low half. Both operators read the same bytes, so a table and the head that is tied to it can be one copy:
MatMulNBits takes them as `[N, blocks, size·bits/8]`, GatherBlockQuantized as rows `[N, K·bits/8]`.
Source: onnxruntime, docs/ContribOperators.md, and its kernels, which the tests run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BITS = (4, 8)
"""Widths of a code that this module packs."""


def middle(bits: int) -> int:
    """Return the zero point of a symmetric grid: 8 for 4 bits, 128 for 8."""
    return 1 << (bits - 1)


def block_count(depth: int, size: int) -> int:
    """Return how many blocks of `size` a row of `depth` weights has; the last may be padded."""
    return -(-depth // size)


def pack_codes(codes: Array, bits: int) -> Array:
    """Pack codes of whole blocks: uint8 `[N, blocks, size]` → uint8 `[N, blocks, size·bits/8]`."""
    return _pack_last(codes, bits)


def unpack_codes(packed: Array, bits: int) -> Array:
    """Undo `pack_codes`: uint8 `[N, blocks, size·bits/8]` → uint8 `[N, blocks, size]`."""
    return _unpack_last(packed, bits)


def pack_zero_points(zero_points: Array, bits: int) -> Array:
    """Pack one code a block: uint8 `[N, blocks]` → uint8 `[N, ceil(blocks·bits/8)]`."""
    odd = zero_points.shape[-1] % (8 // bits)
    padded = np.pad(zero_points, ((0, 0), (0, 1))) if odd else zero_points
    return _pack_last(padded, bits)


def unpack_zero_points(packed: Array, blocks: int, bits: int) -> Array:
    """Undo `pack_zero_points`: uint8 `[N, ceil(blocks·bits/8)]` → uint8 `[N, blocks]`."""
    return _unpack_last(packed, bits)[:, :blocks]


def gather_rows(packed: Array) -> Array:
    """Return the codes as GatherBlockQuantized's table: `[N, blocks, bytes]` → `[N, blocks·bytes]`, no copy.

    It gives rows of `blocks·size` values: what stands behind K in them is the last block's padding.
    """
    return packed.reshape(packed.shape[0], -1)


def dequantize(
    codes: Array, scales: Array, zero_points: Array | None, *, bits: int, depth: int | None = None
) -> Array:
    """Return the weights that the operators compute with, float32 `[N, depth]`.

    What MatMulNBits at accuracy levels 0 and 1 and GatherBlockQuantized compute, bit by bit. Level 4 reads
    the same weights and rounds the activations.

    Args:
        codes: uint8 `[N, blocks, size]`, unpacked.
        scales: float32 or float16 `[N, blocks]`.
        zero_points: uint8 `[N, blocks]`, unpacked; None: symmetric.
        bits: of a code.
        depth: K; None: all of `blocks·size`.
    """
    zeros = np.float32(middle(bits)) if zero_points is None else zero_points[..., None].astype(np.float32)
    weight = (codes.astype(np.float32) - zeros) * scales[..., None].astype(np.float32)
    return weight.reshape(codes.shape[0], -1)[:, :depth]


def matmul_attributes(
    *, depth: int, channels: int, bits: int, size: int, accuracy_level: int = 0
) -> dict[str, int]:
    """Return the attributes of MatMulNBits; its inputs are (x, codes, scales, zero points or nothing).

    An input that is left out before a bias is "" in the file. x is `[..., depth]`, the result
    `[..., channels]`. `accuracy_level` 0 and 1 compute in float32, 4 rounds activations to int8 a block.
    """
    return {
        "K": depth, "N": channels, "bits": bits, "block_size": size, "accuracy_level": accuracy_level
    }  # fmt: skip


def gather_attributes(*, bits: int, size: int) -> dict[str, int]:
    """Return the attributes of GatherBlockQuantized over rows, ids, scales and perhaps zero points.

    An id outside of the table gives zeros, where Gather is an error.
    """
    return {"bits": bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}


def _pack_last(values: Array, bits: int) -> Array:
    if bits == 8:
        return np.ascontiguousarray(values, np.uint8)
    packed = values[..., 1::2].astype(np.uint8)
    packed <<= 4
    packed |= values[..., 0::2]
    return packed


def _unpack_last(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    np.bitwise_and(packed, 15, out=values[..., 0::2])
    np.right_shift(packed, 4, out=values[..., 1::2])
    return values


__all__ = [
    "BITS", "block_count", "dequantize", "gather_attributes", "gather_rows", "matmul_attributes", "middle",
    "pack_codes", "pack_zero_points", "unpack_codes", "unpack_zero_points",
]  # fmt: skip
