"""Weights that a checkpoint stores in blocks of a few bits, whatever its format: AWQ, GPTQ, GGUF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph import nbits

Array = np.ndarray[Any, Any]

_LEAST, _MOST = 16, 256
"""Block sizes that ONNX Runtime's kernels take: powers of two between these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight:
    """One weight of a product, N outputs of depth K, as MatMulNBits can store it.

        weight[n, order[k]] = (code[n, k] - zero_point[n, b]) · scale[n, b] + offset[n, b],  b = k // size

    Attributes:
        bits: of a code, as it will be stored: 4 or 8.
        size: weights of a block.
        depth: K.
        codes: reads them, uint8 `[N, blocks, size]`; nothing is kept.
        scales: float16 or float32 `[N, blocks]`.
        zero_points: uint8 `[N, blocks]`; None: the middle of the codes everywhere.
        minimums: float16 or float32 `[N, blocks]`, what code 0 stands for in formats that store a minimum
            instead of a zero point: the offset is minimum + zero_point · scale. None: no offset.
        order: where each place along the depth comes from (GPTQ's act-order), int64 `[K]`; None: in turn.
    """

    bits: int
    size: int
    depth: int
    codes: Callable[[], Array]
    scales: Array
    zero_points: Array | None = None
    minimums: Array | None = None
    order: Array | None = None

    @property
    def channels(self) -> int:
        """N."""
        return int(self.scales.shape[0])

    def offsets(self) -> Array | None:
        """What is added to every weight of a block, float32 `[N, blocks]`."""
        if self.minimums is None:
            return None
        zeros = nbits.middle(self.bits) if self.zero_points is None else self.zero_points
        shift = np.asarray(zeros, np.float32) * self.scales.astype(np.float32)
        return np.asarray(self.minimums.astype(np.float32) + shift)

    def decoded(self) -> Array:
        """The weights, float32 `[N, K]`, with the roundings of the graph that `keep` writes."""
        codes = self.codes()
        weight = nbits.dequantize(codes, self.scales, self.zero_points, bits=self.bits)
        offsets = self.offsets()
        if offsets is not None:
            weight = (weight.reshape(codes.shape) + offsets[..., None]).reshape(weight.shape)
        weight = weight[:, : self.depth]
        if self.order is None:
            return weight
        turned = np.empty_like(weight)
        turned[:, self.order] = weight
        return turned

    def tensor(self, name: str, *, turned: bool) -> ir.LazyTensor:
        """The decoded weight, `[N, K]` or (`turned`) `[K, N]`, made each time that it is read."""
        shape = (self.depth, self.channels) if turned else (self.channels, self.depth)

        def read() -> ir.TensorProtocol:
            weight = self.decoded()
            return ir.tensor(np.ascontiguousarray(weight.T if turned else weight), name=name)

        return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)

    @property
    def stored_bits(self) -> int:
        """Bits of everything that is stored for this weight."""
        blocks = self.scales.size
        total = blocks * (self.size * self.bits + 8 * self.scales.itemsize)
        total += blocks * self.bits if self.zero_points is not None else 0
        return total + (8 * self.minimums.nbytes if self.minimums is not None else 0)


def block_size(group: int) -> int | None:
    """The largest block that ONNX Runtime takes and that lies within groups of this many weights."""
    size = min(group & -group, _MOST)
    return size if size >= _LEAST else None


def in_blocks(codes: Array, size: int) -> Array:
    """Cut codes `[N, K]` into blocks, `[N, blocks, size]`; the last one is padded with zeros."""
    rows, depth = codes.shape
    blocks = nbits.block_count(depth, size)
    padded = np.pad(codes, ((0, 0), (0, blocks * size - depth))) if depth % size else codes
    return padded.reshape(rows, blocks, size)


def by_block(groups: Array, group: int, size: int, depth: int) -> Array:
    """Repeat what groups `[N, groups]` share for each of their blocks, `[N, blocks]`."""
    starts = np.arange(nbits.block_count(depth, size)) * size
    return np.ascontiguousarray(groups[:, starts // group])


__all__ = ["PackedWeight", "block_size", "by_block", "in_blocks"]
