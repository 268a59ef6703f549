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
    Samples of fewer than `ENOUGH` values count together, as many as have that many.
    """

    name = "moving-average"
    AVERAGING: ClassVar[float] = 0.01
    """That of ONNX Runtime's and PyTorch's observers. Over a calibration set of the usual size the result
    is near the plain mean: what comes late in the file must not decide."""
    ENOUGH: ClassVar[int] = 1024
    """The fewer values, the nearer their extremes. Clipped at those of so many, normal values have three
    times the least squared error that 8 bits allow; at those of the 64 of a row of a table, fifty times."""

    def __init__(self) -> None:
        self._open = Extremes()
        self._counts: dict[str, int] = {}
        self._sums: dict[str, _Sums] = {}

    @classmethod
    def parameters(cls) -> Mapping[str, float]:
        """The averaging constant, and the values that count together at least."""
        return {"averaging": cls.AVERAGING, "enough": cls.ENOUGH}

    def begin_sample(self) -> None:
        """Take the extremes of what is complete into the averages."""
        for value in [value for value, count in self._counts.items() if count >= self.ENOUGH]:
            self._sums[value] = self._with_open(value)
            del self._open.seen[value], self._counts[value]

    def update(self, value: str, array: Values) -> None:
        """Widen the sample's extremes."""
        self._open.update(value, array)
        self._counts[value] = self._counts.get(value, 0) + array.size

    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
        made = {value: self._with_open(value) for value in {**self._sums, **self._counts}}
        return {v: Range(low=low / weight, high=high / weight) for v, (low, high, weight) in made.items()}

    def _with_open(self, value: str) -> _Sums:
        """The sums with the samples that are not in them yet, which weigh the less, the fewer values."""
        sums = self._sums.get(value, (0.0, 0.0, 0.0))
        count = self._counts.get(value, 0)
        if not count:
            return sums
        new = self.AVERAGING * min(1.0, count / self.ENOUGH)
        seen, (low, high, weight) = self._open.seen[value], sums
        keep = 1.0 - new
        return keep * low + new * seen.low, keep * high + new * seen.high, keep * weight + new
