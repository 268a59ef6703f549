"""Weights in blocks of 4 or 8 bits, each block with a scale of its own: `com.microsoft.MatMulNBits`.

Activations stay float outside; what a product reads from memory shrinks, which is what one token's time is
made of. Rounding and packing are ONNX Runtime's own kernels (`matmul_nbits_quantizer`): round to nearest.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError, UsageError
from onnxkit.quantize.weights import register
from onnxkit.runtime import import_onnxruntime

Array = np.ndarray[Any, Any]

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """How weights are divided and computed with.

    Attributes:
        bits: of a code, 4 or 8.
        size: weights of one output channel that share a scale.
        symmetric: without zero points, which cost about a tenth of a decode step on a CPU.
        accuracy_level: what the product computes in: 0 as it likes, 1 float32, 2 float16, 3 bfloat16,
            4 int8 (activations rounded block by block, the fast kernels of CPUs).
    """

    bits: int
    size: int = 32
    symmetric: bool = True
    accuracy_level: int = 4


def blocks_of(bits: int, size: int | None, symmetric: bool | None, accuracy_level: int | None) -> Blocks:
    """Fill in the defaults; UsageError for what the operator does not take."""
    given = {"size": size, "symmetric": symmetric, "accuracy_level": accuracy_level}
    made = Blocks(bits=bits, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    if made.size not in BLOCK_SIZES:
        raise UsageError(f"--block-size {made.size}: one of {', '.join(map(str, BLOCK_SIZES))}")
    if made.accuracy_level not in ACCURACY_LEVELS:
        raise UsageError(f"--accuracy-level {made.accuracy_level}: 0 to 4")
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockedWeight:
    """The initializers that stand for one weight.

    Attributes:
        codes: uint8 `[N, blocks, size·bits/8]`.
        scales: float32 `[N, blocks]`.
        zero_points: uint8 `[N, ceil(blocks·bits/8)]`, or None.
        depth, channels: K and N of the product.
    """

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    depth: int
    channels: int


class BlockStore:
    """Makes the blocked initializers of one graph; a weight that two products read is stored once."""

    def __init__(self, graph: ir.Graph, blocks: Blocks) -> None:
        self.blocks = blocks
        self._graph = graph
        self._made: dict[tuple[str, bool], BlockedWeight] = {}

    def blocked(self, weight: ir.Value, *, turned: bool, layer: str) -> BlockedWeight:
        """Return `weight` in blocks along the depth; it is `[K, N]`, or `[N, K]` when `turned`."""
        key = (str(weight.name), turned)
        if key not in self._made:
            tensor = weight.const_value
            if tensor is None:
                raise InputError(f"the weight '{weight.name}' has no value in the file")
            self._made[key] = self._store(_Packing(tensor, self.blocks, turned, layer), str(weight.name))
        return self._made[key]

    def _store(self, packing: _Packing, name: str) -> BlockedWeight:
        bits = self.blocks.bits
        parts = [
            register(self._graph, f"{name}.{label}", packing.part(number))
            for number, label in enumerate((f"int{bits}", f"int{bits}.scale", f"int{bits}.zero_point"))
            if number < 2 or not self.blocks.symmetric
        ]
        codes, scales, *rest = parts
        return BlockedWeight(
            codes=codes, scales=scales, zero_points=rest[0] if rest else None,
            depth=packing.depth, channels=packing.channels,
        )  # fmt: skip


class _Packing:
    """Packs one weight when the file is written: the codes of a model are never all in memory before."""

    def __init__(self, tensor: ir.TensorProtocol, blocks: Blocks, turned: bool, layer: str) -> None:
        self._tensor, self._blocks, self._turned, self._layer = tensor, blocks, turned, layer
        rows, columns = (int(size) for size in tensor.shape.numpy())
        self.depth, self.channels = (columns, rows) if turned else (rows, columns)

    def part(self, number: int) -> ir.LazyTensor:
        """Codes (0), scales (1) or zero points (2)."""
        kind = ir.DataType.FLOAT if number == 1 else ir.DataType.UINT8
        return ir.LazyTensor(
            lambda: ir.tensor(self._packed[number]), dtype=kind, shape=ir.Shape(self._shapes()[number])
        )

    def _shapes(self) -> tuple[list[int], list[int], list[int]]:
        in_byte, count = 8 // self._blocks.bits, -(-self.depth // self._blocks.size)
        channels = self.channels
        return (
            [channels, count, self._blocks.size // in_byte],
            [channels, count],
            [channels, -(-count // in_byte)],
        )

    @cached_property
    def _packed(self) -> tuple[Array, Array, Array]:
        weight = self._tensor.numpy()
        if not np.isfinite(weight).all():
            raise InputError(
                f"cannot quantize layer '{self._layer}': a weight is NaN or infinite (tensor "
                f"'{self._tensor.name}')"
            )
        return _pack(np.ascontiguousarray(weight.T if self._turned else weight), self._blocks)


def _pack(weight: Array, blocks: Blocks) -> tuple[Array, Array, Array]:
    """`[K, N]` float32 → codes, scales, zero points, by ONNX Runtime's kernels.

    They are called as `onnxruntime.quantization.matmul_nbits_quantizer` calls them, whose import turns the
    log of every library on.
    """
    kernels = import_onnxruntime().capi._pybind_state
    quantize = kernels.quantize_matmul_4bits if blocks.bits == 4 else kernels.quantize_matmul_8bits
    depth, channels = weight.shape
    in_byte, count = 8 // blocks.bits, -(-depth // blocks.size)
    padded = np.pad(weight, ((0, count * blocks.size - depth), (0, 0)))
    packed = np.zeros((channels, count, blocks.size // in_byte), np.uint8)
    scales = np.zeros((channels, count), np.float32)
    zeros = np.zeros((channels, -(-count // in_byte)), np.uint8)
    quantize(packed, padded, scales, zeros, blocks.size, channels, depth, blocks.symmetric)
    return packed, scales, zeros


__all__ = ["ACCURACY_LEVELS", "BLOCK_SIZES", "BlockStore", "BlockedWeight", "Blocks", "blocks_of"]
