"""An output counts only once ONNX Runtime has loaded and run it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import GateFailed, InputError
from onnxkit.graph.files import load_model
from onnxkit.quantize.expose import expose, open_exposed
from onnxkit.runtime import RuntimeOptions, Session

Feeds = Mapping[str, np.ndarray[Any, Any]]


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
        InputError: the input model itself gives NaN.
        GateFailed: the quantized one does; names the first layer where it begins.
    """
    for name, feeds in cases:
        before, after = source.run(feeds), result.run(feeds)
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
    expose(model, [node.outputs[0] for node in nodes])
    scratch = written.parent / ".search"
    try:
        values = open_exposed(model, written, scratch, RuntimeOptions()).run(feeds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    bad = [layer for layer, output in names if not np.isfinite(values[output]).all()]
    return bad[0] if bad else "unknown"
