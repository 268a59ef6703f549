"""Rounding of int8 weights by the error of the layer's output: GPTQ (Frantar et al. 2022, arXiv:2210.17323).

The scales stay those of the grid (`weights.channel_scales`); the error of each input channel's rounding is
made up for by the channels that are rounded after it. The Hessian is that of a sample: it counts as far as
it carries over to other data (`blocks.hessian`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.codes.blocks.hessian import trusted

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

PEAK = 127
PAIR = 128
"""What the codes of two neighbours of one sign may add up to in the grid "paired": 255 * 128 < 2**15."""

_BLOCK = 128


def gptq_rounder(hessian: Floats, *, paired: bool) -> Callable[[Floats, Floats], Codes]:
    """Return a function from a weight `[N, K]` and its scales `[N]` to int8 codes `[N, K]`.

    Args:
        hessian: float32 `[K, K]`, the mean of x xᵀ over the layer's inputs.
        paired: keep to the bound of the grid "paired".
    """
    depth = len(hessian)
    factor: list[Floats] = []  # made once, for all weights that read one value

    def rounded(weight: Floats, scales: Floats) -> Codes:
        if weight.shape[1] != depth:
            raise ValueError(f"a weight of depth {weight.shape[1]} and a Hessian of {depth}")
        if not factor:
            factor.append(inverse_factor(hessian))
        units = np.ascontiguousarray((weight / scales[:, None]).T, dtype=np.float32)
        return np.ascontiguousarray(_round(units, factor[0], paired=paired).T)

    return rounded


def inverse_factor(hessian: Floats) -> Floats:
    """Upper triangular U with UᵀU = T⁻¹, float32 `[K, K]`; T: the Hessian as far as it is trusted."""
    lower = np.linalg.cholesky(np.linalg.inv(trusted(hessian).astype(np.float64)))
    return np.ascontiguousarray(lower.T, dtype=np.float32)


def _round(units: Floats, factor: Floats, *, paired: bool) -> Codes:
    """Round `[K, N]` weights in units of their scales, one input channel after another."""
    depth, channels = units.shape
    left = units.copy()
    codes = np.empty((depth, channels), np.int8)
    before = np.zeros(channels, np.float32)
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        errors = np.empty((stop - start, channels), np.float32)
        for k in range(start, stop):
            low: int | Floats = -PEAK
            high: int | Floats = PEAK
            if paired:
                low = np.maximum(-PEAK, -PAIR - np.minimum(before, 0))
                high = np.minimum(PEAK, PAIR - np.maximum(before, 0))
            before = np.clip(np.rint(left[k]), low, high)
            codes[k] = before
            errors[k - start] = (left[k] - before) / factor[k, k]
            left[k + 1 : stop] -= factor[k, k + 1 : stop, None] * errors[k - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return codes
