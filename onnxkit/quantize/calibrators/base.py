"""What a calibrator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.activations import Range


class Calibrator(ABC):
    """Takes activations one batch at a time and keeps a summary whose size never grows.

    `update` receives every value of one batch; batches may have any shape.
    """

    name: ClassVar[str]

    @abstractmethod
    def update(self, value: str, array: npt.NDArray[np.float32]) -> None:
        """Take in one batch of the named value; it is finite and not empty."""

    @abstractmethod
    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
