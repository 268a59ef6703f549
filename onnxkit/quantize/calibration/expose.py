"""A model that gives the values inside it, for calibration and for finding where NaN begins."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxkit.errors import InputError
from onnxkit.graph.kv_cache import is_optional, is_past, is_present
from onnxkit.runtime import RuntimeOptions, Session, open_session

_MOST_INSIDE = 2_000_000_000  # bytes; a protobuf message holds 2 GiB


def open_exposed(
    model: ir.Model, values: Collection[str], source: Path, scratch: Path, options: RuntimeOptions
) -> Session:
    """Open a copy of the graph whose outputs are the named float values, and the cache where there is one.

    What leads to neither is left out, so that nobody computes logits that nobody reads. External weights
    are read where they lie.

    Args:
        model: as loaded from the file `source`, perhaps changed in memory; it stays as it is.
        values: names of values that nodes make. Names of graph inputs are passed over.
        source: the ONNX file whose folder holds the external weights.
        scratch: a folder that need not exist, for more changed weights than a protobuf message holds.
        options: of the session.
    """
    made = exposed(model, frozenset(values))
    if _inside_bytes(made) < _MOST_INSIDE:
        return open_session(ir.to_proto(made).SerializeToString(), options, weights=source.parent)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "exposed.onnx"
    ir.save(made, path, external_data="exposed.data")
    return open_session(path, options)


def _inside_bytes(model: ir.Model) -> int:
    """Bytes of the weights that the file itself would hold."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))


def exposed(model: ir.Model, values: Collection[str]) -> ir.Model:
    """Return a copy of the graph that computes `values` (and the cache) alone; its weights are not copied."""
    copy = model.clone()
    graph = copy.graph
    cached = any(is_past(value) for value in graph.inputs)
    outputs = [value for value in graph.outputs if cached and is_present(value)]
    for node in graph:
        for value in node.outputs:
            if value.name in values:
                value.type = ir.TensorType(ir.DataType.FLOAT)
                outputs.append(value)
    graph.outputs[:] = outputs or list(graph.outputs)
    for value in [value for value in graph.inputs if is_optional(value)]:
        graph.inputs.remove(value)  # of all positions, as its default says
    passes.RemoveUnusedNodesPass()(copy)
    return copy


def copy_weights(model: ir.Model, source: Path, folder: Path) -> None:
    """Copy the external data files that a model, loaded from the file `source`, still reads into a folder.

    Those that are there already stay. They are not linked: a model whose data has a second name is refused.
    """
    for location in sorted(_locations(model)):
        place = folder / location
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.parent / location, place)


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
