"""Activation-aware scaling (Lin et al. 2023): input channels that carry much get finer weights.

y = W x = (W s) (x / s): the weights of a channel are multiplied by s before they are rounded, and the
division is folded into what produces x. s = rms(x)^alpha, alpha searched on the layer's own output error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxkit.quantize.codes.blocks import search
from onnxkit.quantize.codes.blocks.codes import BlockCodes, Floats, checked
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.input_statistics import InputStatistics

_STEPS = 11
_ROWS = 256  # of each weight, that the search looks at


def quantize(weight: Floats, fmt: BlockFormat, statistics: InputStatistics | None = None) -> BlockCodes:
    """Return the codes of `[N, K]` that is scaled already, by the importance-weighted search.

    `statistics` are those of the scaled input (`scaled_statistics`).

    Raises:
        ValueError: a weight is NaN, infinite or too large for a half-precision scale.
    """
    return search.quantize(weight, fmt, statistics)


def awq_scales(weights: Sequence[Floats], statistics: InputStatistics, fmt: BlockFormat) -> Floats:
    """Return s, float32 [K]: multiply the weights' columns by it and divide their input.

    Args:
        weights: float32 `[N, K]` of all the products that read the one value; they share s.
        statistics: of that value. The output error is tr(dW H dWᵀ) with a Hessian, and its diagonal without.
        fmt: what the weights will become.

    Returns:
        positive scales whose geometric mean over the channels is about 1; ones where no other is better.
    """
    sample = np.concatenate([_spread(checked(weight)) for weight in weights])
    size = np.sqrt(np.maximum(statistics.mean_square, 0)).astype(np.float64)
    size = np.maximum(size, size.mean() * 1e-4) if size.any() else np.ones_like(size)
    best, least = np.ones(len(size), np.float32), np.inf
    for alpha in np.linspace(0, 1, _STEPS):
        scales = np.exp(alpha * (np.log(size) - np.log(size).mean())).astype(np.float32)
        made = quantize(sample * scales, fmt, scaled_statistics(statistics, scales)).dequantized()
        made /= scales
        error = _output_error(made - sample, statistics)
        if error < least:
            best, least = scales, error
    return best


def scaled_statistics(statistics: InputStatistics, scales: Floats) -> InputStatistics:
    """Return the statistics of x / scales."""
    hessian = statistics.hessian
    return dataclasses.replace(
        statistics,
        absmax=statistics.absmax / scales,
        mean=statistics.mean / scales,
        mean_square=statistics.mean_square / scales**2,
        hessian=None if hessian is None else hessian / scales / scales[:, None],
    )


def _spread(weight: Floats) -> Floats:
    """Up to `_ROWS` rows, evenly spread."""
    return weight[:: -(-len(weight) // _ROWS)]


def _output_error(off: Floats, statistics: InputStatistics) -> float:
    if statistics.hessian is None:
        found: Any = np.einsum("nk,nk,k->", off, off, statistics.mean_square, optimize=True)
    else:
        found = np.einsum("nk,nk->", off @ statistics.hessian, off)
    return float(found)
