"""Post-training quantization of a model directory for ONNX Runtime.

The data goes one way: options -> targets (which layers, and why) -> calibration (static schemes only) ->
rewritten graph -> check -> comparison with the input model -> report.
"""

from __future__ import annotations

from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.report import QuantizeReport
from onnxkit.quantize.search.analysis import Analysis
from onnxkit.quantize.stage import analyze_model, quantize_model

__all__ = ["Analysis", "QuantizeOptions", "QuantizeReport", "analyze_model", "quantize_model"]
