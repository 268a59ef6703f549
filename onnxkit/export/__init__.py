"""From a checkpoint to a model directory: tracer and hooks, native fallback, PyTorch's side of the check."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxkit.export.exporter import export_model
    from onnxkit.export.report import ExportOptions, ExportReport

__all__ = ["ExportOptions", "ExportReport", "export_model"]


_HOMES = {"ExportOptions": "report", "ExportReport": "report", "export_model": "exporter"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
