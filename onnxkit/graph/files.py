"""Loading and saving onnx_ir models: vetted on the way in, plain and small on the way out."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxkit.errors import ResourceError, UsageError
from onnxkit.graph.regions import ATTRS, OP, REGION
from onnxkit.graph.shared_data import SharedData
from onnxkit.runtime import opset_ceiling
from onnxkit.safety import read_model

EMBEDDED_BYTES = 100_000_000
"""Weights up to this many bytes stand in the .onnx file; more go to `<name>.data` beside it."""

_SMALL_BYTES = 1024

_KEPT = frozenset({REGION, OP, ATTRS})
_EXPORTERS = ("pkg.torch.", "pkg.onnxscript.")
"""How keys begin under which PyTorch's exporter keeps its sources and paths."""


def load_model(path: Path) -> ir.Model:
    """Read a vetted ONNX file; external weights stay on disk, mapped when they are read.

    Raises:
        InputError, UnsafeError: as `safety.read_model`.
    """
    model = ir.from_proto(read_model(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def save_model(
    model: ir.Model, path: Path, *, shared: SharedData | None = None, linked: bool = False
) -> None:
    """Write a model without value_info, documentation or the metadata of its nodes but the regions'.

    The model's own key/value pairs stay, as programs read labels, alphabets and sizes from them; an
    exporter's notes to itself do not.

    Shapes stand at graph inputs and outputs only: where ONNX Runtime finds them inside, it fuses
    SkipLayerNormalization, which is slower on the CPU than the two nodes that it replaces.

    Args:
        shared: the data file that takes the weights, of any size, of this and further graphs in the
            directory; each of them is stored once.
        linked: external weights stay where they are: the caller has put their files beside `path`.

    Raises:
        UsageError: the opset is past what the installed ONNX Runtime takes.
        ResourceError: the file cannot be written.
    """
    _check_opset(model)
    if shared is not None:
        _unload(model, shared, linked=linked)
    elif weight_bytes(model) > EMBEDDED_BYTES:
        # Reshape targets and the like stay inside: ONNX Runtime infers shapes from them.
        ir.external_data.unload_from_model(
            model, path.parent, f"{path.name}.data", size_threshold_bytes=_SMALL_BYTES
        )
        _write_back(path.parent / f"{path.name}.data")
    else:
        ir.external_data.load_to_model(model)
    proto = ir.to_proto(model)
    _strip(proto)
    try:
        with path.open("wb") as file:
            file.write(proto.SerializeToString())
    except OSError as error:
        raise ResourceError(f"{path.name} cannot be written: {error.strerror or error}") from error


def _write_back(path: Path) -> None:
    """Flush a large file while the graph is checked, so that publishing finds it flushed."""
    descriptor = os.open(path, os.O_RDONLY)

    def flush() -> None:
        try:
            os.fsync(descriptor)
        except OSError:  # publishing flushes again, and says so
            pass
        finally:
            os.close(descriptor)

    threading.Thread(target=flush, name="onnxkit-write-back", daemon=True).start()


def _unload(model: ir.Model, shared: SharedData, *, linked: bool) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if linked and isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor is not None and tensor.nbytes >= _SMALL_BYTES:
            placed = shared.place(tensor)
            placed.name = str(value.name)
            value.const_value = placed


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the main graph's initializers."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def set_opset(model: ir.Model, opset: int) -> None:
    """Declare `opset` and the lowest IR version that carries it; nodes are not converted."""
    model.opset_imports[""] = opset
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def _check_opset(model: ir.Model) -> None:
    ceiling = opset_ceiling()
    opset = model.opset_imports.get("", 0)
    if opset > ceiling.opset or model.ir_version > ceiling.ir:
        raise UsageError(
            f"opset {opset} (IR {model.ir_version}) is past what ONNX Runtime {ceiling.onnxruntime} takes: "
            f"at most opset {ceiling.opset}, IR {ceiling.ir}; ask for a lower --opset"
        )


def _strip(proto: onnx.ModelProto) -> None:
    for graph in [proto.graph, *proto.functions]:
        del graph.value_info[:]
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            kept = [entry for entry in node.metadata_props if entry.key in _KEPT]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    for value in [*proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    kept = [entry for entry in proto.metadata_props if not entry.key.startswith(_EXPORTERS)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


__all__ = ["EMBEDDED_BYTES", "load_model", "save_model", "set_opset", "weight_bytes"]
