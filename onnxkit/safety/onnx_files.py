"""The one way an `.onnx` file is read: parsed, then vetted, with its external weights left on disk."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxkit.errors import InputError, OnnxkitError
from onnxkit.safety.onnx_packed import check_packed_weights
from onnxkit.safety.onnx_structure import check_structure
from onnxkit.safety.onnx_tensors import check_tensor
from onnxkit.safety.onnx_text import check_texts
from onnxkit.safety.onnx_walk import all_tensors, all_values, external_entries
from onnxkit.safety.paths import contained, regular_file

# A protobuf message holds at most 2 GiB; so does what ONNX Runtime and onnx parse.
MAX_PROTOBUF_BYTES = 2**31 - 1


def read_model(path: Path, *, root: Path | None = None) -> onnx.ModelProto:
    """Parse and vet `path`; external data is checked against its file but not loaded.

    External data must stay in the file's own directory. `root` is the model directory that the file
    itself must not leave through a link; without it, `path` may be a link that the user named.

    A dimension of -1 becomes one without a value. Vetted, for initializers, sparse initializers, attributes,
    subgraphs and functions alike: types and sizes of tensors, locations of external data, bytes of packed
    weights, dimensions, unique names, cycles of nodes and of functions, and how far functions expand.

    Raises:
        InputError: missing, empty, over 2 GiB, truncated, no ONNX model, or inconsistent.
        UnsafeError: it reads outside its directory, or would exhaust memory.
    """
    if root is not None:
        contained(root, str(path.relative_to(root)))
    size = regular_file(path, "ONNX file").st_size
    if size > MAX_PROTOBUF_BYTES:
        raise InputError(
            f"{path}: {size} bytes; an ONNX file ends at 2 GiB, larger weights go into an external data file"
        )
    model = _parse(path)
    try:
        _check(model, path)
    except OnnxkitError:
        raise
    except (ValueError, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: damaged, or no ONNX model: {error}") from error
    return model


def external_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the locations of a vetted model's external data, sorted, relative to its directory."""
    return tuple(
        sorted({external_entries(tensor)["location"] for tensor in all_tensors(model) if _external(tensor)})
    )


def _external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _parse(path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        # Mapped, not read: the weights then exist once in memory, not twice.
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            model.ParseFromString(view)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: truncated, damaged, or no ONNX file (protobuf: {error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise InputError(f"{path}: no ONNX model: there is no graph in it")
    return model


def _check(model: onnx.ModelProto, path: Path) -> None:
    check_texts(model, path)
    for tensor in all_tensors(model):
        check_tensor(tensor, path)
    for value in all_values(model):
        _settle_dimensions(value.type, value.name, path)
    check_structure(model, path)
    check_packed_weights(model, path)


def _settle_dimensions(kind: onnx.TypeProto, name: str, path: Path) -> None:
    """Make -1, as Paddle writes a free dimension, one without a value; refuse other negative ones.

    onnx's shape inference would abort the process on either.
    """
    field = kind.WhichOneof("value")
    if field in ("tensor_type", "sparse_tensor_type"):
        for dim in getattr(kind, field).shape.dim:
            if dim.dim_value == -1:
                dim.ClearField("dim_value")
            elif dim.dim_value < 0:
                raise InputError(f"{path}: {name!r} has a negative dimension ({dim.dim_value})")
    elif field in ("sequence_type", "optional_type"):
        _settle_dimensions(getattr(kind, field).elem_type, name, path)
    elif field == "map_type":
        _settle_dimensions(kind.map_type.value_type, name, path)
