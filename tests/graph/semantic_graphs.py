"""One-operator models in the semantic dialect, lowered to primitives and run on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph import portable, semantic
from onnxkit.graph.files import save_model, set_opset
from onnxkit.graph.names import name_by_module
from onnxkit.graph.regions import Region, annotate
from onnxkit.runtime import RuntimeOptions, open_session

Array = np.ndarray[Any, Any]
_DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "bool": ir.DataType.BOOL}


def value(name: str, array: Array, free: Sequence[int] = ()) -> ir.Value:
    """A graph input of the array's type; the axes in `free` are symbols."""
    shape = [f"{name}_{axis}" if axis in free else size for axis, size in enumerate(array.shape)]
    made = ir.Value(name=name, shape=ir.Shape(shape))
    made.dtype = _DTYPES[str(array.dtype)]
    return made


def lowered(
    nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], output: ir.Value
) -> tuple[ir.Model, list[Region]]:
    """Lower a graph of semantic nodes and annotate the regions."""
    graph = ir.Graph(inputs, [output], nodes=nodes, opset_imports={"": 18, semantic.DOMAIN: 1}, name="main")
    output.name = "out"
    model = ir.Model(graph, ir_version=8)
    regions = portable.lower(model)
    name_by_module(model)
    for region in regions:
        annotate(region)
    del model.opset_imports[semantic.DOMAIN]
    set_opset(model, 18)
    return model, regions


def run(model: ir.Model, feeds: Mapping[str, Array], directory: Path) -> Array:
    """The only output."""
    path = directory / "model.onnx"
    save_model(model, path)
    return next(iter(open_session(path, RuntimeOptions(threads=1)).run(dict(feeds)).values()))
