"""The range that makes the mean square error of its codes smallest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators.base import Calibrator, Extremes, Values
from onnxkit.quantize.calibration.calibrators.sketches import Counts, Floats, RelativeBins


class MeanSquare(Calibrator):
    """low <= 0 <= high minimize share inside · step² / 12 + mean (x - clip(x))², step = (high - low) / 255.

    The first term is the error of rounding to a uniform grid (Widrow 1961), the second that of
    clipping (Banner et al., ACIQ, 2018). Both ends are searched together, over the numbers that
    `RelativeBins` tell apart.
    """

    name = "mse"
    OCTAVES: ClassVar[int] = 8
    """How far below the extreme an end is searched for: at 1/256 of it, clipping has cost all there is."""

    def __init__(self) -> None:
        self._bins: dict[str, RelativeBins] = {}
        self._extremes = Extremes()

    def update(self, value: str, array: Values) -> None:
        """Count and add up the values."""
        self._extremes.update(value, array)
        self._bins.setdefault(value, RelativeBins(sums=True)).update(array)

    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
        return {value: self._range(bins, self._extremes.seen[value]) for value, bins in self._bins.items()}

    def _range(self, bins: RelativeBins, seen: Range) -> Range:
        values, counts = bins.occupied()
        highs = candidates(seen.high, self.OCTAVES)
        lows = candidates(-seen.low, self.OCTAVES)
        above, over = _clipped(values, counts, highs)
        below, under = _clipped(-values[::-1], counts[::-1], lows)
        steps = (lows[:, None] + highs[None, :]) / 255.0
        error = steps**2 / 12.0 * (1.0 - below[:, None] - above[None, :])
        error += under[:, None] + over[None, :]
        low, high = np.unravel_index(int(error.argmin()), error.shape)
        return Range(low=0.0 - float(lows[low]), high=float(highs[high]))


def candidates(most: float, octaves: int) -> Floats:
    """The bfloat16 numbers in (most / 2^octaves, most), and `most`; zero alone where that is not positive."""
    if most <= 0.0:
        return np.zeros(1)
    ends = np.array([most, np.ldexp(most, -octaves)], np.float32).view(np.uint32) >> np.uint32(16)
    keys = np.arange(int(ends[1]) + 1, int(ends[0]) + 1, dtype=np.uint32) << np.uint32(16)
    below = keys.view(np.float32).astype(np.float64)
    return np.append(below[below < most], most)


def _clipped(values: Floats, counts: Counts, ends: Floats) -> tuple[Floats, Floats]:
    """For each end, ascending: the share of the (ascending) values above it, and their mean square excess."""
    total = float(counts.sum())
    weights = counts / total
    places = np.searchsorted(values, ends, side="right")
    share, first, second = (_suffix(weights * values**power)[places] for power in (0, 1, 2))
    # E (x - t)² = E x² - 2 t E x + t² E 1, over x > t
    excess: npt.NDArray[np.float64] = second - 2.0 * ends * first + ends**2 * share
    return share, np.maximum(excess, 0.0)


def _suffix(terms: Floats) -> Floats:
    """Sums of the terms from each place on; zero after the last."""
    return np.append(np.cumsum(terms[::-1])[::-1], 0.0)
