"""Whether a calibration set says enough, and the warning where it does not."""

from __future__ import annotations

from collections.abc import Iterable

from onnxkit.progress import Progress
from onnxkit.quantize.calibration.collect import FEWEST, Collected
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.statistics import SAMPLE
from onnxkit.quantize.input_statistics import InputStatistics

RANDOM = "calibrated on seeded random data, which says little about real inputs"


def warn_of_ranges(collected: Collected, data: DataSet, progress: Progress) -> None:
    """Warn of samples whose ranges the next ones would widen."""
    if data.random:
        progress.warn(RANDOM)
    elif collected.samples > 1 and collected.distinct == 1:
        progress.warn(f"all {collected.samples} calibration samples are the same: use samples that differ")
    elif collected.enough is not None:
        grew = (
            ""
            if collected.widening is None
            else f" (the last half changed the ranges by {collected.widening:.0%})"
        )
        progress.warn(f"{_too_few(collected.samples)}{grew}; about {collected.enough} would do")


def warn_of_statistics(found: Iterable[InputStatistics], data: DataSet, progress: Progress) -> None:
    """Warn of samples that show most layers little of what their inputs may be.

    A layer of K inputs was shown enough where min(K, 256) / 2 of the rows (tokens, patches) that were kept
    of it differ: its Hessian has no more independent columns than that. Layers behind a pooling, which
    see a row of each sample, say nothing.
    """
    if data.random:
        progress.warn(RANDOM)
        return
    samples = len(data.samples)
    rows = [each.sample for each in found if each.sample is not None and each.count > samples]
    layers = sorted(rows, key=lambda sample: sample.shape[1])
    if not layers:
        return
    middle = layers[len(layers) // 2]
    width, different = middle.shape[1], len({row.tobytes() for row in middle})
    wanted = min(width, SAMPLE) // 2
    if different >= wanted:
        return
    seen = f"{different} different row{'s' if different > 1 else ''} for layers of {width} inputs"
    if different < samples:
        progress.warn(f"{samples} calibration samples are too alike ({seen}): use samples that differ")
        return
    would_do = max(-(-samples * wanted // different), FEWEST)
    progress.warn(f"{_too_few(samples)} ({seen}); about {would_do} would do")


def _too_few(samples: int) -> str:
    one = samples == 1
    return "1 calibration sample is too few" if one else f"{samples} calibration samples are too few"
