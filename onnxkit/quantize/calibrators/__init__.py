"""The table of calibrators: how the range of an activation follows from what was seen of it."""

from __future__ import annotations

from onnxkit.quantize.calibrators.base import Calibrator
from onnxkit.quantize.calibrators.entropy import Entropy
from onnxkit.quantize.calibrators.minmax import MinMax
from onnxkit.quantize.calibrators.moving_average import MovingAverage
from onnxkit.quantize.calibrators.mse import MeanSquare
from onnxkit.quantize.calibrators.percentile import Percentile

__all__ = ["CALIBRATORS", "DEFAULT_CALIBRATOR", "Calibrator"]

CALIBRATORS: dict[str, type[Calibrator]] = {
    calibrator.name: calibrator for calibrator in (MinMax, MovingAverage, Percentile, Entropy, MeanSquare)
}

DEFAULT_CALIBRATOR = Percentile.name
