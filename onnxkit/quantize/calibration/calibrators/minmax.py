"""The smallest and the largest value seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators.base import Calibrator, Extremes, Values


class MinMax(Calibrator):
    """Range = [min, max] over all samples: nothing that was seen is clipped."""

    name = "minmax"
    doublings_per_halving: ClassVar[int] = 1

    def __init__(self) -> None:
        self._extremes = Extremes()

    def update(self, value: str, array: Values) -> None:
        """Widen the range of `value`."""
        self._extremes.update(value, array)

    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
        return dict(self._extremes.seen)
