"""Counts of values in bins: summaries of a size that the number of values does not change.

Two kinds. `RelativeBins` know every value to within 0.4 %, large or small, for thresholds that may lie
anywhere. `LinearBins` are equally wide, as the definition of KL calibration wants them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxkit.quantize.calibration.calibrators.base import Values

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_KEYS = 1 << 16
_HALF = 1 << 15


class RelativeBins:
    """A bin for each bfloat16 number: all float32 values whose upper 16 bits are its bits.

    Sign, exponent and 7 bits of the mantissa: a bin is 2^-8 to 2^-7 of its values wide, and there are
    2^16 of them whatever comes, so none is ever widened or merged, and order does not matter.
    """

    def __init__(self, *, sums: bool = False) -> None:
        """With `sums`, the sum of each bin's values is kept as well."""
        self._counts: Counts = np.zeros(_KEYS, np.int64)
        self._sums: Floats | None = np.zeros(_KEYS, np.float64) if sums else None

    def update(self, array: Values) -> None:
        """Count finite values of any shape."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        keys = flat.view(np.uint32) >> np.uint32(16)
        self._counts += np.bincount(keys, minlength=_KEYS)
        if self._sums is not None:
            self._sums += np.bincount(keys, weights=flat, minlength=_KEYS)

    def occupied(self) -> tuple[Floats, Counts]:
        """Representatives and counts of the bins that hold something, ascending.

        The representative is the mean of a bin's values where sums are kept, else its middle.
        """
        order = np.concatenate([np.arange(_KEYS - 1, _HALF - 1, -1), np.arange(_HALF)])
        order = order[self._counts[order] > 0]
        counts = self._counts[order]
        if self._sums is not None:
            return self._sums[order] / counts, counts
        bits = order.astype(np.uint32) << np.uint32(16)
        middle = (bits | np.uint32(1 << 15)).view(np.float32).astype(np.float64)
        # The lowest bins hold the two zeros (and numbers below 1e-38).
        return np.where(np.isin(order, (0, _HALF)), 0.0, middle), counts


class LinearBins:
    """Bins of one width, a power of two, for magnitudes: bin i counts i·w <= |x| < (i + 1)·w.

    `BINS` of them always reach beyond the largest magnitude, which lies in their upper half. A larger value
    doubles the width, and pairs of bins are added up: dividing by a power of two is exact, so that the
    counts are those of looking at everything at once.
    """

    BINS = 4096

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(self.BINS, np.int64)
        self.width = 0.0
        self._zeros = 0  # before anything else came

    def update(self, array: Values) -> None:
        """Count finite values of any shape."""
        flat = np.abs(np.asarray(array, np.float32)).reshape(-1)
        self._reach(float(flat.max()))
        if not self.width:
            self._zeros += flat.size
            return
        # float64: the quotient of a denormal would not be exact.
        places = (flat.astype(np.float64) / self.width).astype(np.int64)
        self.counts += np.bincount(places, minlength=self.BINS)

    def _reach(self, most: float) -> None:
        if most == 0.0 or most < self.width * self.BINS:
            return
        _, exponent = np.frexp(most)  # most < 2^exponent <= 2 most
        width = float(np.ldexp(1.0, int(exponent))) / self.BINS
        if not self.width:
            self.counts[0], self.width = self._zeros, width
        while self.width < width:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(self.BINS // 2, np.int64)])
            self.width *= 2.0
