"""Blocks of 4 or 8 bits as initializers: what `MatMulNBits` and `GatherBlockQuantized` read.

Scales are stored in half precision and widened by a `Cast` that ONNX Runtime folds when it loads the file:
float32 scales would cost half a bit a weight more in blocks of 32. A table and the head tied to it are one
initializer, which the second reader gets through a `Reshape` that is folded as well. Where nothing is folded
(`--graph-optimization none`), MatMulNBits packs constant codes without their scales, which are none, and
multiplies with garbage (accuracy level 4, ONNX Runtime 1.31): so the codes stand behind a node as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph.nbits import block_count
from onnxkit.quantize.codes.codebook import BlockedTensor, CodeBook
from onnxkit.quantize.codes.weights import register
from onnxkit.quantize.formats import BlockFormat

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockedWeight:
    """The values that stand for one weight.

    Attributes:
        codes: uint8 `[N, blocks, size·bits/8]` of a matrix, `[N, blocks·size·bits/8]` of a table. Of a stack
            each is `[E, N/E, …]`, and the codes are those of a table.
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
    """Makes the blocked initializers of one graph; a weight that two nodes read is stored once."""

    def __init__(self, graph: ir.Graph, book: CodeBook) -> None:
        self._graph, self._book = graph, book
        self._made: dict[tuple[str, bool, BlockFormat, tuple[int, ...]], BlockedWeight] = {}
        self._shaped: dict[tuple[str, int], ir.Value] = {}
        self._behind: dict[str, ir.Value] = {}

    def matrix(self, item: BlockedTensor, blocks: BlockFormat) -> BlockedWeight:
        """Return a product's right side in blocks along its depth; constant codes have constant scales."""
        found = self._as(item, blocks, rank=3)
        if found.scales.is_initializer() or not found.codes.is_initializer():
            return found
        return dataclasses.replace(found, codes=self._handed_on(found.codes))

    def table(self, item: BlockedTensor, blocks: BlockFormat) -> BlockedWeight:
        """Return a table `[N, K]` in blocks along its rows; K is a multiple of the block's size."""
        return self._as(item, blocks, rank=2)

    def stack(self, item: BlockedTensor, blocks: BlockFormat, count: int) -> BlockedWeight:
        """Return `count` matrices `[N/count, K]`, one below the other in `[N, K]`; blocks fit into K."""
        return self._kept(item, blocks, rank=2, stack=(count,))

    def _as(self, item: BlockedTensor, blocks: BlockFormat, *, rank: int) -> BlockedWeight:
        found = self._kept(item, blocks, rank=rank)
        return dataclasses.replace(found, codes=self._shape(found, rank))

    def _kept(
        self, item: BlockedTensor, blocks: BlockFormat, *, rank: int, stack: tuple[int, ...] = ()
    ) -> BlockedWeight:
        key = (item.name, item.turned, blocks.codes, stack)
        if key not in self._made:
            self._made[key] = self._store(item, blocks, rank, stack)
        return self._made[key]

    def _store(
        self, item: BlockedTensor, blocks: BlockFormat, rank: int, stack: tuple[int, ...]
    ) -> BlockedWeight:
        """Register lazy initializers: codes are found when the file is written."""
        rows, columns = (int(size) for size in item.tensor.shape.numpy())
        depth, channels = (columns, rows) if item.turned else (rows, columns)
        count, width = block_count(depth, blocks.size), blocks.size * blocks.bits // 8
        lead = (*stack, channels // math.prod(stack))
        shape = (*lead, count, width) if rank == 3 else (*lead, count * width)
        name = f"{item.name}.int{blocks.bits}"
        codes = self._lazy(name, lambda: self._book.packed(item, blocks).codes, ir.DataType.UINT8, shape)
        zeros = None
        if not blocks.symmetric:
            shape = (*lead, -(-count * blocks.bits // 8))
            zeros = self._lazy(
                f"{name}.zero_point", lambda: self._book.packed(item, blocks).zero_points,
                ir.DataType.UINT8, shape,
            )  # fmt: skip
        scales = self._scales(f"{name}.scale", item, blocks, (*lead, count))
        return BlockedWeight(codes=codes, scales=scales, zero_points=zeros, depth=depth, channels=channels)

    def _scales(
        self, name: str, item: BlockedTensor, blocks: BlockFormat, shape: tuple[int, ...]
    ) -> ir.Value:
        """Half-precision scales behind a Cast, where they fit in it."""
        half = item.exponent == 0
        kind = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        stored = self._lazy(name, lambda: self._book.packed(item, blocks).scales, kind, shape)
        if not half:
            return stored
        widen = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{stored.name}/widen")
        return self._first(widen, f"{stored.name}.float32", ir.DataType.FLOAT, shape)

    def _shape(self, found: BlockedWeight, rank: int) -> ir.Value:
        codes, scales = found.codes, found.scales
        if codes.shape is None or scales.shape is None or len(codes.shape) == rank:
            return codes
        key = (str(codes.name), rank)
        if key not in self._shaped:
            size = int(np.prod(codes.shape.numpy()[1:]))
            blocks = int(scales.shape.numpy()[1])
            dims = (found.channels, size) if rank == 2 else (found.channels, blocks, size // blocks)
            shape = register(self._graph, f"{codes.name}.shape", ir.tensor(np.array(dims, np.int64)))
            node = ir.node("Reshape", [codes, shape], name=f"{codes.name}/reshape")
            self._shaped[key] = self._first(node, f"{codes.name}.rank{rank}", ir.DataType.UINT8, dims)
        return self._shaped[key]

    def _handed_on(self, codes: ir.Value) -> ir.Value:
        """The codes behind an Identity, which ONNX Runtime drops without a copy when it folds."""
        name = str(codes.name)
        if name not in self._behind:
            node = ir.node("Identity", [codes], name=f"{name}/codes")
            self._behind[name] = self._first(node, f"{name}.codes", ir.DataType.UINT8, codes.shape)
        return self._behind[name]

    def _first(
        self, node: ir.Node, name: str, kind: ir.DataType, shape: ir.Shape | tuple[int, ...] | None
    ) -> ir.Value:
        """Put a node that reads nothing but constants in front of all the others."""
        result = node.outputs[0]
        result.name, result.dtype, result.shape = name, kind, None if shape is None else ir.Shape(shape)
        self._graph.insert_before(self._graph[0], node)
        return result

    def _lazy(
        self, name: str, make: Callable[[], Array | None], kind: ir.DataType, shape: tuple[int, ...]
    ) -> ir.Value:
        def tensor() -> ir.TensorProtocol:
            return ir.tensor(np.asarray(make(), dtype=kind.numpy()).reshape(shape))

        return register(self._graph, name, ir.LazyTensor(tensor, dtype=kind, shape=ir.Shape(shape)))
