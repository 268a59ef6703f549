"""The mean of the samples' extremes, later samples counting more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators.base import Calibrator, Extremes, Values

_Sums = tuple[float, float, float]
"""Weighted sums of minima and of maxima, and of the weights."""


class MovingAverage(Calibrator):
    """low and high = exponential moving averages of each sample's minimum and maximum.

    With c = `AVERAGING`, sample k of n weighs c (1 - c)^(n-k), divided by the sum of the weights
    1 - (1 - c)^n (the bias correction of Adam, Kingma and Ba 2015), so that the first sample counts no more
    than others do. Single outliers are clipped; what every sample has, however rare a value it is, is not.
    """

    name = "moving-average"
    AVERAGING: ClassVar[float] = 0.01
    """That of ONNX Runtime's and PyTorch's observers. Over a calibration set of the usual size the result
    is near the plain mean: what comes late in the file must not decide."""

    def __init__(self) -> None:
        self._sample = Extremes()
        self._sums: dict[str, _Sums] = {}

    @classmethod
    def parameters(cls) -> Mapping[str, float]:
        """The averaging constant."""
        return {"averaging": cls.AVERAGING}

    def begin_sample(self) -> None:
        """Take the extremes of the sample before into the averages."""
        self._sums = self._with_sample()
        self._sample = Extremes()

    def update(self, value: str, array: Values) -> None:
        """Widen the sample's extremes."""
        self._sample.update(value, array)

    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
        return {
            value: Range(low=low / weight, high=high / weight)
            for value, (low, high, weight) in self._with_sample().items()
        }

    def _with_sample(self) -> dict[str, _Sums]:
        keep, new = 1.0 - self.AVERAGING, self.AVERAGING
        made = dict(self._sums)
        for value, seen in self._sample.seen.items():
            low, high, weight = made.get(value, (0.0, 0.0, 0.0))
            made[value] = keep * low + new * seen.low, keep * high + new * seen.high, keep * weight + new
        return made
