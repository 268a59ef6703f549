"""What a calibrator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.activations import Range

Values = npt.NDArray[np.float32]


class Calibrator(ABC):
    """Takes activations one run at a time and keeps a summary whose size never grows.

    Batches may have any shape. No range reaches beyond what was seen and zero.

    Attributes:
        name: the key in `CALIBRATORS`.
        doublings_per_halving: how often the samples must double until doubling them once more changes the
            ranges half as much. 1 for extremes, of which ever fewer are new; 2 for what is estimated from the
            distribution, whose error falls with the square root of the samples.
    """

    name: ClassVar[str]
    doublings_per_halving: ClassVar[int] = 2

    def begin_sample(self) -> None:  # noqa: B027 - most do not care
        """Hear that the runs of a further sample follow."""

    @abstractmethod
    def update(self, value: str, array: Values) -> None:
        """Take in one run's array of the named value; it is finite and not empty."""

    @abstractmethod
    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""

    @classmethod
    def parameters(cls) -> Mapping[str, float]:
        """What the ranges depend on beside the data: a calibration cache keeps it."""
        return {}


class Extremes:
    """The smallest and the largest of each value."""

    def __init__(self) -> None:
        self.seen: dict[str, Range] = {}

    def update(self, value: str, array: Values) -> None:
        """Widen the range of `value`."""
        new = Range(low=float(array.min()), high=float(array.max()))
        old = self.seen.get(value, new)
        self.seen[value] = Range(low=min(old.low, new.low), high=max(old.high, new.high))
