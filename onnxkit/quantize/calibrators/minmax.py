"""The smallest and the largest value seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibrators.base import Calibrator


class MinMax(Calibrator):
    """Range = [min, max] over all batches: nothing that was seen is clipped."""

    name = "minmax"

    def __init__(self) -> None:
        self._ranges: dict[str, Range] = {}

    def update(self, value: str, array: npt.NDArray[np.float32]) -> None:
        """Widen the range of `value`."""
        low, high = float(array.min()), float(array.max())
        seen = self._ranges.get(value)
        if seen is not None:
            low, high = min(low, seen.low), max(high, seen.high)
        self._ranges[value] = Range(low=low, high=high)

    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
        return dict(self._ranges)
