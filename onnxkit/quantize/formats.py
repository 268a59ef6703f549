"""What one layer becomes: a union of small records. A plan gives one to each layer that changes.

Half precision is no layer's format but a change of the whole graph: `half`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

Grid = Literal["full", "paired", "seven"]
"""How the scale of a channel of 8-bit weights follows from them (`weights.channel_scales`).

full: 8 bits, max |w| / 127.
paired: 8 bits, (largest sum of two neighbouring weights of one sign) / 127. An x86 CPU without VNNI adds
    the products of two neighbours in saturating 16 bits (`vpmaddubsw`); their codes then add up to at most
    128, and 255 * 128 = 32640 still fits. On trained weights this keeps 6.7 bits or so where `seven` keeps 6.
seven: 7 bits, max |w| / 64: safe whatever the neighbours, for kernels that lay weights out otherwise.
"""

Way = Literal["dynamic", "static", "blocks", "log"]
"""What a scheme does with layers: integers over activations of either kind, blocks, logarithmic codes."""

Algorithm = Literal["rtn", "search", "k-quant", "hqq", "gptq", "awq"]
"""How the codes of blocks are found: see `blocks.ALGORITHMS`."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 2, 3, 4)

_SCALE_BITS = 16  # scales are stored as float16


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerFormat:
    """8-bit weights, and a product of integers: u8 activations times s8 weights.

    Attributes:
        activations: where their range comes from: each run's tensor ("dynamic"), each row of it, that is
            each token ("rows"), or a calibration set ("static").
        grid: how a channel's scale follows from its weights.
        style: ONNX Runtime's integer operators ("qoperator"), or standard QuantizeLinear/DequantizeLinear
            pairs around the float operator ("qdq", static only), which any runtime reads.
        rounding: of the weights: to the nearest code, or by the error of the layer's output ("gptq").
        per_channel: a scale for each output channel; False: one for the whole weight.
        fused: an attention and its projections become one operator; False: products and the standard
            Attention, which is faster with wide vectors.
    """

    activations: Literal["dynamic", "rows", "static"]
    grid: Grid = "full"
    style: Literal["qoperator", "qdq"] = "qoperator"
    rounding: Literal["nearest", "gptq"] = "nearest"
    per_channel: bool = True
    fused: bool = True

    def bits_per_weight(self, depth: int) -> float:
        """8 bits a code, and a float32 scale for the `depth` weights of a channel."""
        return 8.0 + (32.0 / depth if self.per_channel else 0.0)

    def describe(self) -> str:
        """In plain words, for reports."""
        where = {"dynamic": "dynamic", "rows": "by row", "static": "calibrated"}[self.activations]
        extra = ", qdq" if self.style == "qdq" else ""
        extra += ", gptq" if self.rounding == "gptq" else ""
        return f"int8 ({self.grid}), activations {where}{extra}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """4- or 8-bit weights in blocks along the depth, each with a scale; activations stay float.

    Attributes:
        bits: of a code, 4 or 8.
        size: weights of one output channel that share a scale.
        symmetric: without zero points, which cost about a tenth of a decode step on a CPU.
        accuracy_level: what the product computes in: 0 as it likes, 1 float32, 2 float16, 3 bfloat16,
            4 int8 (activations rounded block by block, the fast kernels of CPUs).
        algorithm: how codes and scales are found.
    """

    bits: Literal[4, 8]
    size: int = 32
    symmetric: bool = False
    accuracy_level: int = 4
    algorithm: Algorithm = "rtn"

    def bits_per_weight(self, depth: int) -> float:
        """Codes of whole blocks, a float16 scale a block and, unless symmetric, a packed zero point."""
        blocks = -(-depth // self.size)
        zeros = 0 if self.symmetric else 8 * -(-blocks * self.bits // 8)
        return (blocks * (self.size * self.bits + _SCALE_BITS) + zeros) / depth

    @property
    def codes(self) -> BlockFormat:
        """Without what the codes do not depend on: the key under which they are kept."""
        return dataclasses.replace(self, accuracy_level=0)

    def describe(self) -> str:
        """In plain words, for reports."""
        zero = "symmetric" if self.symmetric else "with zero points"
        return f"int{self.bits} in blocks of {self.size}, {zero}, {self.algorithm}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogFormat:
    """Weights as signed powers of two with a scale a block, decoded in the graph: smaller, not faster."""

    bits: Literal[4, 8]
    size: int = 32

    def bits_per_weight(self, depth: int) -> float:
        """Codes of whole blocks and a float16 scale a block."""
        blocks = -(-depth // self.size)
        return blocks * (self.size * self.bits + _SCALE_BITS) / depth

    def describe(self) -> str:
        """In plain words, for reports."""
        return f"log{self.bits} in blocks of {self.size}"


Format = IntegerFormat | BlockFormat | LogFormat
"""What a layer becomes."""

Plan = Mapping[str, Format]
"""Target name -> format, for one graph; a target that is not in it stays float."""

__all__ = [
    "ACCURACY_LEVELS", "BLOCK_SIZES", "Algorithm", "BlockFormat", "Format", "Grid", "IntegerFormat",
    "LogFormat", "Plan", "Way",
]  # fmt: skip
