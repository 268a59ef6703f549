"""Headers of weight files: whether the file is whole, without reading its tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from onnxkit.errors import InputError
from onnxkit.safety.paths import regular_file
from onnxkit.safety.text import printable

# The format's own limit (safetensors, MAX_HEADER_SIZE).
_MAX_HEADER_BYTES = 100_000_000
# Bits of one element by the format's type names; types that are newer than this are not sized.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64,
    "F64": 64, "C64": 64, "F4": 4,
}  # fmt: skip


def check_safetensors(path: Path) -> None:
    """Check that a safetensors file is as long as its header says and that its tensors lie inside it.

    Format: 8 bytes little-endian header length, a JSON header, then the tensors without gaps.

    Raises:
        InputError: truncated, damaged, or no safetensors file.
    """
    size = regular_file(path, "weight file").st_size
    header, start = _read_header(path, size)
    end = 0
    spans = []
    for name, facts in header.items():
        if name != "__metadata__":
            spans.append(_span(name, facts, path))
    for name, begin, stop in sorted(spans, key=lambda span: span[1:]):
        if begin != end:
            raise InputError(f"{path}: damaged: tensor {name!r} overlaps another or leaves a gap before it")
        end = stop
    if start + end != size:
        problem = "truncated" if start + end > size else "damaged: bytes after its last tensor"
        raise InputError(f"{path}: {problem} ({size} bytes, its header says {start + end})")


def check_gguf(path: Path) -> None:
    """Check that a file starts as GGUF files do and is long enough for what its header announces.

    Format: magic, uint32 version, uint64 number of tensors, uint64 number of keys; a tensor or a key takes
    13 bytes at least.

    Raises:
        InputError: it does not, or is not.
    """
    size = regular_file(path, "weight file").st_size
    with path.open("rb") as file:
        magic, rest = file.read(4), file.read(20)
    if magic != b"GGUF":
        raise InputError(f"{path}: a file, but not GGUF: name the directory of the checkpoint")
    tensors, keys = (int.from_bytes(rest[at : at + 8], "little") for at in (4, 12))
    if len(rest) < 20 or (tensors + keys) * 13 > size:
        raise InputError(f"{path}: truncated: {size} bytes, its header announces {tensors} tensors")


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Return the parsed header and where the tensors start."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise InputError(
                    f"{path}: truncated, or no safetensors file (header of {length}, file of {size} bytes)"
                )
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged: its header is no object")
    return header, 8 + length


def _span(name: str, facts: Any, path: Path) -> tuple[str, int, int]:
    """Return (printable name, begin, end) of one tensor after checking them against type and shape."""
    shown = printable(name, limit=120)
    try:
        kind, shape, (begin, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
        numbers = [begin, end, *shape]
        sound = all(type(number) is int and number >= 0 for number in numbers) and begin <= end
        bits = _BITS.get(kind)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged: no type, shape or offsets for tensor {shown!r}") from error
    if not sound or (bits is not None and math.prod(shape) * bits != 8 * (end - begin)):
        raise InputError(f"{path}: damaged: the bytes of tensor {shown!r} do not fit its type and shape")
    return shown, begin, end
