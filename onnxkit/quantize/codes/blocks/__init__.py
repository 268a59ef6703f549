"""Weights in blocks: one file an algorithm, and the table of them. Arrays only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from onnxkit.quantize.codes.blocks import awq, gptq, hqq, k_quant, rtn, search
from onnxkit.quantize.codes.blocks.awq import awq_scales
from onnxkit.quantize.codes.blocks.codes import BlockCodes, Floats
from onnxkit.quantize.formats import Algorithm, BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

Quantize = Callable[[Floats, BlockFormat, InputStatistics | None], BlockCodes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmRow:
    """An algorithm.

    Attributes:
        quantize: (weight float32 `[N, K]`, format, statistics of its input or None) -> codes; ValueError for
            weights that are NaN, infinite or too large.
        needs: of the statistics: nothing, `mean_square`, which "may" stay away ("importance"), or `hessian`.
        summary: one line for help texts.
    """

    quantize: Quantize
    needs: Literal["none", "importance", "hessian"]
    summary: str


ALGORITHMS: dict[Algorithm, AlgorithmRow] = {
    "rtn": AlgorithmRow(quantize=rtn.quantize, needs="none", summary="round to nearest"),
    "search": AlgorithmRow(
        quantize=search.quantize,
        needs="importance",
        summary="the grid of least squared error, weighted by the input channels' mean square with data",
    ),
    "k-quant": AlgorithmRow(
        quantize=k_quant.quantize, needs="none", summary="llama.cpp's search, weighted by magnitude"
    ),
    "hqq": AlgorithmRow(quantize=hqq.quantize, needs="none", summary="half-quadratic zero points"),
    "gptq": AlgorithmRow(
        quantize=gptq.quantize, needs="hessian", summary="errors made good by the weights that follow"
    ),
    "awq": AlgorithmRow(
        quantize=awq.quantize, needs="importance", summary="channels scaled by activation before the search"
    ),
}

__all__ = ["ALGORITHMS", "AlgorithmRow", "BlockCodes", "awq_scales"]
