"""What is known of a layer's input: made by calibration, read by what finds codes and smooths."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """Of the input x `[tokens, K]` of a layer, over all tokens of the calibration set but padding.

    Attributes:
        count: tokens; 0 where it is no more than what the graph says (`prior`).
        absmax: max |x|, float32 [K].
        mean: float32 [K].
        mean_square: float32 [K].
        hessian: mean of x xᵀ, float32 [K, K] (that of the layer's squared error is twice this);
            None where it was not asked for.
        sample: some of the tokens, in order and evenly spread, float32 [at most 512, K]; None where
            the statistics are not of the layer itself.
    """

    count: int
    absmax: Floats
    mean: Floats
    mean_square: Floats
    hessian: Floats | None = None
    sample: Floats | None = None
