"""Runs the float model over the calibration set and keeps the ranges of its activations.

One batch at a time: the memory is one batch's activations, whatever the number of samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibrators import Calibrator
from onnxkit.runtime import Session

Feeds = Mapping[str, np.ndarray[Any, Any]]

ENOUGH_WIDENING = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What calibration saw.

    Attributes:
        ranges: value name -> range.
        samples: batches of one sample that were run.
        distinct: how many of them differ.
        widening: mean relative growth of the ranges over the last half of the samples; None when
            there were fewer than two.
    """

    ranges: Mapping[str, Range]
    samples: int
    distinct: int
    widening: float | None

    @property
    def enough(self) -> int | None:
        """A number of samples that would do, or None when there were enough.

        The ranges of a calibrator that only widens grow less with each doubling of the samples; growth is
        taken to halve with each. Enough is when the last doubling widened them by less than 5 % on average.
        """
        if self.widening is None:
            return 32
        if self.widening <= ENOUGH_WIDENING:
            return None
        doublings = math.ceil(math.log2(self.widening / ENOUGH_WIDENING))
        return self.samples << doublings


def collect(
    session: Session, batches: Iterable[Feeds], values: Sequence[str], calibrator: Calibrator
) -> Collected:
    """Run every batch and hand the named values to the calibrator.

    Raises:
        InputError: no batches, an empty one, or a value that is NaN or infinite; names the sample and
            the value.
    """
    given = {spec.name for spec in session.outputs}
    wanted = [name for name in values if name in given]
    history: dict[int, Mapping[str, Range]] = {}
    digests: set[bytes] = set()
    count = 0
    for feeds in batches:
        count += 1
        outputs = {**feeds, **session.run(feeds, wanted)}
        for name in values:
            calibrator.update(name, _checked(outputs[name], name, count))
        digests.add(_digest(feeds))
        if count & (count - 1) == 0:  # a power of two
            history[count] = calibrator.ranges()
    if not count:
        raise InputError("the calibration set is empty")
    ranges = calibrator.ranges()
    earlier = [number for number in history if number * 2 <= count]
    widening = _widening(history[max(earlier)], ranges) if earlier else None
    return Collected(ranges=ranges, samples=count, distinct=len(digests), widening=widening)


def _checked(array: np.ndarray[Any, Any], name: str, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not array.size:
        raise InputError(f"calibration sample {number} is empty: value '{name}' has shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"calibration sample {number} makes NaN or infinity in '{name}': check the sample")
    return array


def _digest(feeds: Feeds) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        total.update(name.encode() + str(feeds[name].shape).encode())
        total.update(np.ascontiguousarray(feeds[name]).tobytes())
    return total.digest()


def _widening(before: Mapping[str, Range], after: Mapping[str, Range]) -> float:
    """Mean of (width after / width before - 1)."""
    grown = []
    for name, now in after.items():
        width = before[name].high - before[name].low
        if width > 0:
            grown.append((now.high - now.low) / width - 1.0)
    return float(np.mean(grown)) if grown else 0.0
