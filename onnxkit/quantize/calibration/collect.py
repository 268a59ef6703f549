"""Runs the float model over the calibration set and keeps the ranges of its activations.

One run at a time: the memory is one run's activations, whatever the number of samples.
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
from onnxkit.quantize.calibration.calibrators import Calibrator
from onnxkit.quantize.calibration.runs import Feeds, Run

ENOUGH_CHANGE = 0.05
FEWEST = 32
"""What is recommended where nothing can be measured, with a single sample."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What calibration saw.

    Attributes:
        ranges: value name -> range.
        samples: how many were run.
        distinct: how many of them differ.
        widening: mean relative change of the ranges over the last half of the samples; None when there
            were fewer than two.
        doublings_per_halving: of the calibrator.
    """

    ranges: Mapping[str, Range]
    samples: int
    distinct: int
    widening: float | None
    doublings_per_halving: int = 1

    @property
    def enough(self) -> int | None:
        """A number of samples that would do, or None when there were enough.

        Enough is when the last doubling changed the ranges by less than 5 % on average. Each further
        doubling (of estimates: every second) is taken to halve the change.
        """
        if self.widening is None:
            return FEWEST
        if self.widening <= ENOUGH_CHANGE:
            return None
        halvings = math.log2(self.widening / ENOUGH_CHANGE)
        return self.samples << math.ceil(halvings * self.doublings_per_halving)


def collect(
    runs: Iterable[Run], values: Sequence[str], calibrator: Calibrator, *, total: int | None = None
) -> Collected:
    """Hand the named values of every run to the calibrator.

    Args:
        runs: one sample's runs after the other's.
        values: names of values that each run has.
        calibrator: takes them.
        total: how many samples there will be; None where nobody knows: then the change is not measured.

    Raises:
        InputError: no runs, an empty value, or one that is NaN or infinite; names the sample and the value.
    """
    half: Mapping[str, Range] | None = None
    digests: set[bytes] = set()
    count = 0
    for run in runs:
        if run.sample > count:
            if total is not None and 0 < count == total // 2:
                half = calibrator.ranges()
            calibrator.begin_sample()
            digests.add(_digest(run.feeds))  # of its first run: what follows depends on it
        count = run.sample
        for name in values:
            calibrator.update(name, checked(run, name))
    if not count:
        raise InputError("the calibration set is empty")
    ranges = calibrator.ranges()
    return Collected(
        ranges=ranges,
        samples=count,
        distinct=len(digests),
        widening=None if half is None else _change(half, ranges),
        doublings_per_halving=calibrator.doublings_per_halving,
    )


def checked(run: Run, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A value of a run without padding; InputError for an empty one, NaN or infinity."""
    array = run.tokens(name)
    if not array.size:
        raise InputError(
            f"{run.where}: this calibration sample is empty (value '{name}' has shape {array.shape}); "
            "leave it out"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{run.where}: this calibration sample makes NaN or infinity in '{name}': mend it or leave it out"
        )
    return array


def _digest(feeds: Feeds) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        total.update(name.encode() + str(feeds[name].shape).encode())
        total.update(np.ascontiguousarray(feeds[name]).tobytes())
    return total.digest()


def _change(before: Mapping[str, Range], after: Mapping[str, Range]) -> float:
    """Mean of |width after / width before - 1|."""
    changes = []
    for name, now in after.items():
        width = before[name].high - before[name].low
        if width > 0:
            changes.append(abs((now.high - now.low) / width - 1.0))
    return float(np.mean(changes)) if changes else 0.0
