"""Runs a graph to learn what some of its inner values are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Editor
from onnxkit.runtime import RuntimeOptions, open_session

Array = np.ndarray[Any, Any]

INFINITE = 1e30
"""A magnitude from which on a number stands for "masked"."""


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
    outputs, before = model.graph.outputs, len(model.graph.outputs)
    outputs.extend(value for value in values if not value.is_graph_output())
    try:
        runs = _run(model, [str(value.name) for value in values], cases, scratch)
    finally:
        del outputs[before:]
    return [{value: run[str(value.name)] for value in values} for run in runs]


def largest(model: ir.Model, cases: Sequence[Mapping[str, Array]], scratch: Path) -> dict[str, float]:
    """Return the largest magnitude of each float32 value of the main graph over all cases, by name.

    Magnitudes of `INFINITE` and more stand for "masked" and do not count. The model is left as it was.

    Raises:
        InputError: ONNX Runtime does not take the model or the inputs.
    """
    graph, editor = model.graph, Editor(model.graph)
    values = [v for node in graph for v in node.outputs if v.dtype == ir.DataType.FLOAT and v.name]
    limit, zero = (editor.constant(np.array(number, np.float32)) for number in (INFINITE, 0.0))
    measured: dict[str, ir.Value] = {}
    added: list[ir.Node] = []
    for value in values:
        size = ir.node("Abs", [value])
        small = ir.node("Less", [size.outputs[0], limit])
        finite = ir.node("Where", [small.outputs[0], size.outputs[0], zero])
        most = ir.node("ReduceMax", [finite.outputs[0]], {"keepdims": 0})
        most.outputs[0].name, most.outputs[0].dtype = f"{value.name}/largest", ir.DataType.FLOAT
        added += [size, small, finite, most]
        measured[str(value.name)] = most.outputs[0]
    graph.extend(added)
    runs = probe(model, list(measured.values()), cases, scratch)
    graph.remove(added)
    return {name: max(float(run[value]) for run in runs) for name, value in measured.items()}


def _run(
    model: ir.Model, names: Sequence[str], cases: Sequence[Mapping[str, Array]], scratch: Path
) -> list[dict[str, Array]]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "probe.onnx"
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        session = open_session(path, RuntimeOptions(threads=1, graph_optimization="basic"))
        taken = {spec.name for spec in session.inputs}
        return [session.run({k: v for k, v in case.items() if k in taken}, names) for case in cases]
