"""A model that also gives the values inside it, for calibration and for finding where NaN begins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from onnxkit.errors import InputError
from onnxkit.runtime import RuntimeOptions, Session, open_session


def expose(model: ir.Model, values: Iterable[ir.Value]) -> list[str]:
    """Make float values further outputs of the graph, in place; return the names of those that are new."""
    names = []
    for value in values:
        if value.is_graph_output() or value.is_graph_input():
            continue
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
        names.append(str(value.name))
    return names


def open_exposed(model: ir.Model, source: Path, scratch: Path, options: RuntimeOptions) -> Session:
    """Write the model into `scratch` and open it; external weights are linked there, not loaded.

    Args:
        model: as loaded from the file `source`, with more outputs.
        source: the ONNX file whose folder holds the external weights.
        scratch: an empty folder, on the same file system where possible.
        options: of the session.
    """
    scratch.mkdir(exist_ok=True)
    for location in sorted(_locations(model)):
        place = scratch / location
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source.parent / location, place)
    path = scratch / "exposed.onnx"
    ir.save(model, path)
    return open_session(path, options)


def link_or_copy(source: Path, place: Path) -> None:
    """Hard-link a file (ONNX Runtime reads those, but no symlinks), or copy it across file systems."""
    if place.exists():
        return
    try:
        os.link(source.resolve(), place)
    except OSError:
        shutil.copyfile(source, place)


def _locations(model: ir.Model) -> set[str]:
    found = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                location = str(value.const_value.location)
                if Path(location).is_absolute() or ".." in Path(location).parts:
                    raise InputError(f"weight '{value.name}' lies outside of the model's folder: {location}")
                found.add(location)
    return found
