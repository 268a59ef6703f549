"""Rules for one tensor of an ONNX file: its type, its dimensions and where its bytes are."""

from __future__ import annotations

import math
from pathlib import Path

from onnx import TensorProto

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.onnx_walk import external_entries
from onnxkit.safety.paths import contained, linked, regular_file
from onnxkit.safety.text import printable

# Bits of one element, by data type (onnx.proto, TensorProto.DataType). Strings have no size.
_BITS = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT2", "INT2"), 2),
}
_NAMES = {number: name for name, number in TensorProto.DataType.items()}
# Which repeated field holds a type's values when they are not raw; the rest go into int32_data.
_FIELDS = {
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"),
    **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    "INT64": "int64_data",
    "STRING": "string_data",
}
# onnx sets attributes from these keys: any other key could overwrite an object's internals
# (CVE-2026-34445). `basepath` is written by older onnx and never followed here.
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_MAX_ELEMENTS = 2**48


def check_tensor(tensor: TensorProto, path: Path) -> None:
    """Check one tensor of the file `path`.

    Raises:
        InputError: type, dimensions and bytes do not fit each other, or the data file is missing or short.
        UnsafeError: its data file leaves the directory, is a link, or has unknown keys.
    """
    where = f"{path}: tensor {printable(tensor.name, limit=120)!r}"
    kind = _NAMES.get(tensor.data_type, "UNDEFINED")
    if kind != "STRING" and kind not in _BITS:
        raise InputError(f"{where} has the unknown data type {tensor.data_type}")
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{where} has a negative dimension: {list(tensor.dims)}")
    elements = math.prod(tensor.dims)
    if elements > _MAX_ELEMENTS:
        raise InputError(f"{where} declares {elements} elements")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, kind, elements, where, path)
    elif tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise InputError(f"{where} has external data entries but is not marked as external")
    else:
        _check_embedded(tensor, kind, elements, where)


def size_bytes(kind: str, elements: int) -> int:
    """Return the bytes of `elements` packed values of the type named `kind` (a DataType name)."""
    return -(-elements * _BITS[kind] // 8)


def _check_embedded(tensor: TensorProto, kind: str, elements: int, where: str) -> None:
    # Each look at raw_data copies the weight, so there is one.
    raw_bytes = len(tensor.raw_data) if tensor.HasField("raw_data") else 0
    if raw_bytes:
        if kind == "STRING":
            raise InputError(f"{where}: texts cannot be stored as raw data")
        expected, found = size_bytes(kind, elements), raw_bytes
    else:
        expected = _field_length(kind, elements)
        found = len(getattr(tensor, _FIELDS.get(kind, "int32_data")))
    if expected != found:
        raise InputError(
            f"{where}: {kind} of shape {list(tensor.dims)} needs {expected} bytes or values, "
            f"the file has {found}"
        )


def _field_length(kind: str, elements: int) -> int:
    if kind.startswith("COMPLEX"):
        return 2 * elements
    if kind != "STRING" and _BITS[kind] in (2, 4):
        return size_bytes(kind, elements)  # one int32 holds one byte of packed values
    return elements


def _check_external(tensor: TensorProto, kind: str, elements: int, where: str, path: Path) -> None:
    unknown = {entry.key for entry in tensor.external_data} - _EXTERNAL_KEYS
    if unknown:
        raise UnsafeError(f"{where}: unknown external data keys {printable(str(sorted(unknown)), limit=120)}")
    entries = external_entries(tensor)
    if len(entries) != len(tensor.external_data) or tensor.raw_data or kind == "STRING":
        raise InputError(f"{where}: external data given twice, beside raw data, or for texts")
    size = external_size(entries.get("location", ""), where, path)
    offset = _number(entries.get("offset", "0"), where)
    length = _number(entries["length"], where) if "length" in entries else size_bytes(kind, elements)
    if length != size_bytes(kind, elements):
        needed = f"needs {size_bytes(kind, elements)}"
        raise InputError(f"{where}: {kind} of shape {list(tensor.dims)} has {length} bytes, {needed}")
    if offset + length > size:
        raise InputError(
            f"{where}: bytes {offset} to {offset + length} of {entries['location']}, which has only {size}; "
            "the data file is truncated or belongs to another model"
        )


def external_size(location: str, where: str, path: Path) -> int:
    """Return the size of the data file at `location`, which is relative to `path`'s directory.

    Raises:
        InputError: it is missing or no regular file.
        UnsafeError: it leaves the directory, is reached through a symlink, or has several hard links.
    """
    target = contained(path.parent, location)
    shown = printable(location, limit=120)
    if linked(path.parent, target):
        raise UnsafeError(
            f"{where}: its data file {shown} is a link, which ONNX Runtime refuses; copy the file itself "
            "there (out of a Hub cache: download to a local directory)"
        )
    status = regular_file(target, "external data file")
    if status.st_nlink > 1:
        raise UnsafeError(
            f"{where}: its data file {shown} has {status.st_nlink} hard links; copy the file instead"
        )
    return status.st_size


def _number(text: str, where: str) -> int:
    """Parse a decimal number strictly: `int` would take signs, blanks, underscores and other scripts."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError(
            f"{where}: external data offset or length {printable(text, limit=40)!r} is no number"
        )
    return int(text)
