"""Rewrites a model's graph for an execution provider, and proves that it still computes the same."""

from __future__ import annotations

from onnxkit.optimize.levels import LEVELS, Level
from onnxkit.optimize.options import OptimizeOptions
from onnxkit.optimize.report import (
    CheckResult,
    ComponentChange,
    DroppedFusion,
    KeptRegions,
    OptimizeReport,
    SpeedRatio,
)
from onnxkit.optimize.stage import optimize_model

__all__ = [
    "LEVELS",
    "CheckResult",
    "ComponentChange",
    "DroppedFusion",
    "KeptRegions",
    "Level",
    "OptimizeOptions",
    "OptimizeReport",
    "SpeedRatio",
    "optimize_model",
]
