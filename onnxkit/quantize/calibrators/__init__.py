"""The table of calibrators: how the range of an activation follows from what was seen of it."""

from __future__ import annotations

from onnxkit.quantize.calibrators.base import Calibrator
from onnxkit.quantize.calibrators.minmax import MinMax

__all__ = ["CALIBRATORS", "Calibrator"]

CALIBRATORS: dict[str, type[Calibrator]] = {MinMax.name: MinMax}
