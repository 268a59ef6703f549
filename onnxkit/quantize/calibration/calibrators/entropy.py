"""The range that keeps most of the distribution's information: KL calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators.base import Calibrator, Extremes, Values
from onnxkit.quantize.calibration.calibrators.sketches import Counts, Floats, LinearBins


class Entropy(Calibrator):
    """Clip |x| at the t of smallest KL(P ‖ Q); the range is [max(min, -t), min(max, t)].

    P is the histogram of |x| up to t with all that lies beyond added to its last bin; Q the same part of the
    histogram in `LEVELS` levels, each level's counts spread evenly over its occupied bins, as TensorRT
    defines it (Migacz, "8-bit inference with TensorRT", GTC 2017; ONNX Runtime's `compute_entropy` follows
    it). Empty bins of both get a little of the others' mass, so that the divergence is finite.
    """

    name = "entropy"
    LEVELS: ClassVar[int] = 128
    """Codes of a magnitude in 8 bits. The first t leaves each level one bin."""
    GROWTH: ClassVar[float] = 1.01
    """Ratio of two thresholds that are compared: one in 1 % of the next is as good."""
    EPSILON: ClassVar[float] = 1e-4
    """As in ONNX Runtime."""

    def __init__(self) -> None:
        self._bins: dict[str, LinearBins] = {}
        self._extremes = Extremes()

    @classmethod
    def parameters(cls) -> Mapping[str, float]:
        """Bins and levels."""
        return {"bins": LinearBins.BINS, "levels": cls.LEVELS}

    def update(self, value: str, array: Values) -> None:
        """Count the magnitudes."""
        self._extremes.update(value, array)
        self._bins.setdefault(value, LinearBins()).update(array)

    def ranges(self) -> Mapping[str, Range]:
        """The ranges so far."""
        found = {}
        for value, bins in self._bins.items():
            seen, limit = self._extremes.seen[value], self._threshold(bins.counts) * bins.width
            found[value] = Range(low=max(seen.low, -limit), high=min(seen.high, limit))
        return found

    def _threshold(self, counts: Counts) -> int:
        """The number of bins to keep."""
        occupied = np.flatnonzero(counts)
        used = int(occupied[-1]) + 1 if len(occupied) else 0
        sizes = self.sizes(used)
        divergences = [self._divergence(counts, size) for size in sizes]
        return sizes[int(np.argmin(divergences))]

    @classmethod
    def sizes(cls, used: int) -> list[int]:
        """The numbers of bins that are tried for a histogram whose last occupied bin is `used` - 1."""
        found, size = [], float(cls.LEVELS)
        while round(size) < used:
            found.append(round(size))
            size = max(size * cls.GROWTH, round(size) + 1.0)
        return [*found, max(used, 1)]

    def _divergence(self, counts: Counts, size: int) -> float:
        kept = counts[:size].astype(np.float64)
        occupied = kept > 0
        if not occupied.any():
            return 0.0 if size == 1 else np.inf
        levels = np.arange(size) * self.LEVELS // max(size, self.LEVELS)
        mass, bins = np.bincount(levels, weights=kept), np.bincount(levels, weights=occupied)
        spread = np.where(occupied, (mass / np.maximum(bins, 1.0))[levels], 0.0)
        kept[-1] += counts[size:].sum()
        p, q = self._smoothed(kept), self._smoothed(spread)
        return float(np.sum(p * np.log(p / q)))

    def _smoothed(self, counts: Floats) -> Floats:
        """As shares; every empty bin gets `EPSILON` of a count, for which the others pay in equal parts.

        An occupied bin holds one at least, and of 4096 bins at least one is: the price is below a half.
        """
        empty = counts == 0.0
        price = self.EPSILON * empty.sum() / (~empty).sum()
        made: Floats = np.where(empty, self.EPSILON, counts - price)
        shares: Floats = made / made.sum()
        return shares
