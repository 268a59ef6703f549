"""An output counts only once ONNX Runtime has loaded and run it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.errors import GateFailed, InputError
from onnxkit.graph.files import load_model
from onnxkit.measure.agreement import fed, run_case
from onnxkit.quantize.calibration.expose import open_exposed
from onnxkit.runtime import RuntimeOptions, Session

Feeds = Mapping[str, np.ndarray[Any, Any]]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_WEIGHED = {
    "MatMul", "FusedMatMul", "Gemm", "Conv", "Gather", "Attention", "MatMulNBits", "GatherBlockQuantized",
    "MatMulIntegerToFloat", "DequantizeLinear", "QuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm",
    "QAttention", "Mul", "MoE", "QMoE",
}  # fmt: skip
"""Readers of weights and scales. Others' constants may be infinite: masks are added, some are looked up."""


def check_weights(model: ir.Model, where: Path) -> None:
    """Require finite weights and scales.

    Raises:
        InputError: one holds NaN or infinity; names it and the layer that reads it.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        reader = _reader(value)
        if tensor is None or tensor.dtype not in _FLOATS or reader is None or reader.op_type not in _WEIGHED:
            continue
        values = tensor.numpy().astype(np.float32, copy=False)
        finite = ~np.isnan(values) if reader.op_type == "Gather" else np.isfinite(values)
        if not finite.all():
            raise InputError(
                f"{where}: {int((~finite).sum())} of {finite.size} values of '{value.name}', which layer "
                f"'{reader.name}' reads, are NaN or infinite: mend the weights, or --exclude the layer"
            )


def _reader(value: ir.Value) -> ir.Node | None:
    """The first node that reads the value, perhaps in another type."""
    readers = [use.node for use in value.uses()]
    while readers and readers[0].op_type in ("Cast", "Reshape", "Transpose"):
        readers = [use.node for use in readers[0].outputs[0].uses()]
    return readers[0] if readers else None


def check_runs(
    source: Session, result: Session, cases: Sequence[tuple[str, Feeds]], written: Path, layers: Sequence[str]
) -> None:
    """Run both models and require finite outputs wherever the input model's are finite.

    Args:
        source: the input model.
        result: the quantized model.
        cases: named feeds.
        written: the quantized file, searched for the first bad layer when the check fails.
        layers: names of its quantized nodes, in graph order.

    Raises:
        InputError: the input model itself gives NaN; a weight or scale that is not finite.
        GateFailed: the quantized one does; names the first layer where it begins.
    """
    check_weights(load_model(written), written)
    for name, feeds in cases:
        before, after = run_case(source, name, feeds), result.run(fed(result, feeds))
        for output, right in before.items():
            if right.dtype.kind != "f":
                continue
            if np.isnan(right).any():
                raise InputError(
                    f"{source.model}: output '{output}' is NaN already before quantization ({name})"
                )
            if (~np.isfinite(after[output]) & np.isfinite(right)).any():
                layer = first_bad_layer(written, layers, feeds)
                raise GateFailed(
                    f"the quantized model's output '{output}' is not finite ({name}); it begins in layer"
                    f" '{layer}': leave it float with --exclude"
                )


def first_bad_layer(written: Path, layers: Sequence[str], feeds: Feeds) -> str:
    """Name the first quantized layer whose output is not finite."""
    model = load_model(written)
    wanted = set(layers)
    nodes = [node for node in model.graph if node.name in wanted]
    names = [(str(node.name), str(node.outputs[0].name)) for node in nodes]
    if not names:
        return "unknown"
    scratch = written.parent / ".search"
    try:
        outputs = [output for _, output in names]
        session = open_exposed(model, outputs, written, scratch, RuntimeOptions())
        values = session.run(feeds, outputs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    bad = [layer for layer, output in names if not np.isfinite(values[output]).all()]
    return bad[0] if bad else "unknown"
