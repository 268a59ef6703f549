"""The plan that a scheme begins with: a format for each target."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from onnxkit.graph.kv_cache import is_past
from onnxkit.quantize.codes.blocks import ALGORITHMS
from onnxkit.quantize.formats import Algorithm, BlockFormat, Format, IntegerFormat, LogFormat, Plan
from onnxkit.quantize.hardware import Hardware
from onnxkit.quantize.operators import Target
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.schemes import Scheme
from onnxkit.quantize.select import makes_output

ROWS_FROM = 1 << 16
"""Weights of a graph's products on average, from which on each token gets a scale of its own."""

_LEAST_BLOCK = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Gives each target of one graph its format.

    Attributes:
        rows: whether each row of an activation gets a scale of its own (see `wants_rows`).
        data: whether there is calibration data that says which weights matter.
    """

    scheme: Scheme
    options: QuantizeOptions
    hardware: Hardware
    rows: bool = False
    data: bool = False

    def plan(self, targets: Sequence[Target]) -> Plan:
        """A format for every target; the two readers of a tied table get the same one."""
        return {target.name: self.format_of(target) for target in targets}

    def format_of(self, target: Target) -> Format:
        """The format of one target."""
        match self.scheme.family:
            case "integer" if not self._is_end_of_rows(target):
                return self._integer(target)
            case "log":
                return LogFormat(bits=4 if self.scheme.bits == 4 else 8, size=self.options.block_size or 32)
            case _ if self._is_end(target):
                return self.block_format(target, self._end_bits())
            case _:
                return self.block_format(target, 4 if self.scheme.bits == 4 else 8)

    def block_formats(self, target: Target) -> tuple[Format, ...]:
        """The formats that a mixed scheme may give a target, the smallest first.

        Unless a size was asked for, also 4 bits in finer blocks, which win more a bit than 8 do (a third of
        the error for 0.6 bits), and 8 bits in coarser ones.
        """
        if self._is_end(target) and self.options.embeddings is not None:
            return (self.block_format(target, self._end_bits()),)
        narrow, wide = self.block_format(target, 4), self.block_format(target, 8)
        if self.options.block_size is not None:
            return narrow, wide
        finer = dataclasses.replace(narrow, size=16) if isinstance(narrow, BlockFormat) else narrow
        coarser = wide
        if isinstance(wide, BlockFormat) and target.depth % 64 == 0:
            coarser = dataclasses.replace(wide, size=64)
        return tuple(dict.fromkeys((narrow, finer, coarser, wide)))

    def block_format(self, target: Target, bits: Literal[4, 8]) -> Format:
        """Blocks of `bits`; those of tables and of mixtures in one operator divide the rows.

        A table that no block divides has int8 rows, a scale each.
        """
        size = self.options.block_size or 32
        if target.kind == "embedding" or target.tied or target.node.op_type == "MoE":
            while target.depth % size and size > _LEAST_BLOCK:
                size //= 2
            if target.depth % size and target.kind == "embedding":
                return IntegerFormat(activations="dynamic")
        options = self.options
        symmetric = bits == 8 if options.symmetric is None else options.symmetric
        level = 4 if options.accuracy_level is None else options.accuracy_level
        return BlockFormat(
            bits=bits, size=size, symmetric=symmetric, accuracy_level=level,
            algorithm=self._algorithm(target, bits),
        )  # fmt: skip

    def _is_end(self, target: Target) -> bool:
        """A table or an output head: nothing damps their errors."""
        return target.kind == "embedding" or target.tied or makes_output(target.node.outputs[0])

    def _is_end_of_rows(self, target: Target) -> bool:
        """Whether an integer scheme leaves a table or a head in 8-bit blocks: where each token has its scale.

        A head of one scale for each row makes 40 % of SmolLM2-135M's noise; in blocks the whole's KL falls
        from 0.0168 to 0.0107, and a step takes as long. QDQ stays standard.
        """
        known = target.kind in ("linear", "embedding") or target.tied
        return self.rows and known and self.options.format != "qdq" and self._is_end(target)

    def _end_bits(self) -> Literal[4, 8]:
        """Bits of tables and output heads; tables are not asked for where they stay float."""
        return 4 if self.options.embeddings == "int4" else 8

    def _algorithm(self, target: Target, bits: int) -> Algorithm:
        """What was asked for, or the best for what is known: nothing of the inputs of tables and experts.

        8 bits are nearly exact without a Hessian of minutes (SmolLM2: KL 0.0041; rounded to nearest 0.0049).
        """
        asked = self.options.algorithm
        if asked is None:
            seen = self.data and target.kind != "experts"
            asked = "gptq" if seen and bits == 4 else "search"
        unseen = target.kind in ("embedding", "experts") or target.tied
        return "rtn" if unseen and ALGORITHMS[asked].needs != "none" and asked != "search" else asked

    def _integer(self, target: Target) -> IntegerFormat:
        hardware, options = self.hardware, self.options
        static = self.scheme.way == "static"
        grid = hardware.convolutions if target.kind == "conv" else hardware.products
        if target.kind == "embedding" and not target.tied:
            grid = "full"
        return IntegerFormat(
            activations="static" if static else "rows" if self.rows else "dynamic",
            grid=grid,
            style="qdq" if options.format == "qdq" else "qoperator",
            rounding="gptq" if self._learns_rounding(target) else "nearest",
            per_channel=options.per_channel,
            fused=hardware.fused_attention,
        )

    def _learns_rounding(self, target: Target) -> bool:
        """Whether GPTQ rounds an int8 weight: MiniLM's cosine 0.9969 -> 0.9976 (static 0.9975 -> 0.9983).

        SmolLM2-135M, with a scale for each token: KL 0.0203 -> 0.0185. It takes minutes for a Hessian of each
        layer's input; `algorithm` rtn does without.
        """
        wanted = self.options.algorithm in (None, "gptq")
        return wanted and self.data and target.kind == "linear" and not target.tied


def wants_rows(model: ir.Model, targets: Sequence[Target]) -> bool:
    """A scale for each token pays in graphs with a cache, where products are large: see `RowActivations`.

    Its operators take about 5 µs a product; below `ROWS_FROM` weights that is more than int8 wins.
    """
    cached = any(is_past(value) for value in model.graph.inputs)
    large = bool(targets) and sum(target.parameters for target in targets) >= ROWS_FROM * len(targets)
    newer = model.graph.opset_imports.get("", 0) >= 18  # ReduceMax takes its axes as an input
    return cached and large and newer
