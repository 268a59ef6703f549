"""The codes of weights in blocks, found once and kept between the variants of a graph.

What is kept is packed, and no more than a budget of it: the codes of a large model are never all in memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.graph.nbits import pack_codes, pack_zero_points
from onnxkit.quantize.codes.blocks import ALGORITHMS
from onnxkit.quantize.codes.rounding import gptq_rounder
from onnxkit.quantize.codes.weights import Codes, Floats, Rounder
from onnxkit.quantize.codes.weights import blocks as blocks_of_rows
from onnxkit.quantize.formats import BlockFormat, IntegerFormat
from onnxkit.quantize.input_statistics import InputStatistics

Array = np.ndarray[Any, Any]

BUDGET_BYTES = 1 << 29


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedBlocks:
    """A weight in blocks, as the operators read it.

    Attributes:
        codes: uint8 `[N, blocks, size·bits/8]`.
        scales: float32 `[N, blocks]`; each a float16, unless the weight is of no size for that.
        zero_points: uint8 `[N, ceil(blocks·bits/8)]`, or None.
    """

    codes: Array
    scales: Array
    zero_points: Array | None

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take in memory."""
        zeros = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.codes.nbytes + self.scales.nbytes + zeros


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockedTensor:
    """What is put in blocks, and for whom.

    Attributes:
        tensor: `[K, N]`, or `[N, K]` when `turned`.
        name: of the weight in the graph.
        layer: the target, for messages.
        seen: whether the codes may be chosen by what the layer's input looks like.
    """

    tensor: ir.TensorProtocol
    name: str
    turned: bool
    layer: str
    seen: bool

    def rows(self) -> Array:
        """The weight as float32 `[N, K]`, times 2^-`exponent`."""
        weight = self.tensor.numpy()
        found = np.ascontiguousarray(weight if self.turned else weight.T, dtype=np.float32)
        return np.ldexp(found, -self.exponent) if self.exponent else found

    @cached_property
    def exponent(self) -> int:
        """A power of two that brings a weight of no usual size to one whose scales float16 holds well.

        0 for all but the strangest weights, whose scales are stored as float32.

        Raises:
            InputError: a weight is NaN or infinite; names the tensor and the layer.
        """
        peak = float(
            np.max([np.abs(part).max(initial=0.0) for part in _parts(self.tensor.numpy())], initial=0.0)
        )
        if not math.isfinite(peak):
            raise InputError(
                f"cannot quantize layer '{self.layer}': a weight is NaN or infinite (tensor '{self.name}')"
            )
        usual = peak == 0.0 or 2.0**-10 <= peak <= 2.0**15
        return 0 if usual else math.frexp(peak)[1]


class CodeBook:
    """Finds the codes of a graph's weights.

    Attributes:
        statistics: target name -> what its input looks like, by calibration data or by the graph (`prior`).
    """

    def __init__(
        self,
        statistics: Mapping[str, InputStatistics] | None = None,
        *,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self.statistics: dict[str, InputStatistics] = dict(statistics or {})
        self._budget = budget_bytes
        self._rounder: tuple[object, Rounder] | None = None
        self._kept: OrderedDict[tuple[str, bool, BlockFormat], PackedBlocks] = OrderedDict()

    @property
    def seen(self) -> bool:
        """Whether the statistics are of calibration data."""
        return any(each.count for each in self.statistics.values())

    def packed(self, weight: BlockedTensor, blocks: BlockFormat) -> PackedBlocks:
        """Return the codes of a weight; those of the latest ones are remembered.

        Raises:
            InputError: the weight holds NaN or infinity; names it and the layer.
        """
        key = (weight.name, weight.turned, blocks.codes)
        if key not in self._kept:
            self._kept[key] = self._find(weight, blocks)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)
        return self._kept[key]

    def know(self, joined: Mapping[str, str]) -> None:
        """Let a layer that stands for several see what one of them saw: its name -> theirs."""
        for name, part in joined.items():
            if part in self.statistics:
                self.statistics[name] = self.statistics[part]

    def rounder(self, layer: str, format: IntegerFormat) -> Rounder | None:
        """What stands for rounding a layer's int8 weights to nearest, where format and data say so."""
        seen = self.statistics.get(layer)
        if format.rounding != "gptq" or seen is None or seen.hessian is None:
            return None
        hessian, paired = seen.hessian, format.grid == "paired"

        def rounded(weight: Floats, scales: Floats) -> Codes:
            key = (id(hessian), paired)
            if self._rounder is None or self._rounder[0] != key:  # layers of one input follow one another
                self._rounder = key, gptq_rounder(hessian, paired=paired)
            return self._rounder[1](weight, scales)

        return rounded

    def _find(self, weight: BlockedTensor, blocks: BlockFormat) -> PackedBlocks:
        statistics = self.statistics.get(weight.layer) if weight.seen else None
        found = ALGORITHMS[blocks.algorithm].quantize(weight.rows(), blocks, statistics)
        zeros = None if found.zero_points is None else pack_zero_points(found.zero_points, blocks.bits)
        return PackedBlocks(
            codes=pack_codes(found.codes, blocks.bits),
            scales=np.ldexp(found.scales, weight.exponent) if weight.exponent else found.scales,
            zero_points=zeros,
        )


def _parts(weight: Array) -> Iterator[Array]:
    """Slices, and their largest magnitudes, take little memory; NaN is the largest of all."""
    return (weight[part] for part in blocks_of_rows(weight.shape[0], math.prod(weight.shape[1:])))
