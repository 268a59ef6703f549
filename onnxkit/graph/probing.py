"""Runs a graph to learn what some of its inner values are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.runtime import RuntimeOptions, open_session

Array = np.ndarray[Any, Any]


def probe(
    model: ir.Model, values: Sequence[ir.Value], cases: Sequence[Mapping[str, Array]], scratch: Path
) -> list[dict[ir.Value, Array]]:
    """Return what `values` are for each of `cases`; the model is left as it was.

    A copy of the model is written below `scratch` and removed again, so that weights of any size work.

    Raises:
        InputError: ONNX Runtime does not take the model or the inputs.
    """
    if not values:
        return [{} for _ in cases]
    hidden = [value for value in values if not value.is_graph_output()]
    graph = model.graph
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "probe.onnx"
        before = list(graph.outputs)
        graph.outputs.extend(hidden)
        try:
            ir.save(model, path, external_data="probe.onnx.data")
        finally:
            del graph.outputs[len(before) :]
        session = open_session(path, RuntimeOptions(threads=1, graph_optimization="basic"))
        taken = {spec.name for spec in session.inputs}
        names = [str(value.name) for value in values]
        runs = [session.run({k: v for k, v in case.items() if k in taken}, names) for case in cases]
    return [{value: run[str(value.name)] for value in values} for run in runs]
