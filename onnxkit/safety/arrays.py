"""`.npy` and `.npz` files: the header is read first, pickles never."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.paths import regular_file
from onnxkit.safety.text import printable

MAX_ARRAY_BYTES = 2 * 1024**3

_DAMAGE = (
    ValueError, OSError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, NotImplementedError,
    RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


def read_npz(path: Path, *, max_bytes: int = MAX_ARRAY_BYTES) -> dict[str, NDArray[Any]]:
    """Read every array of an `.npz` file; together they may take at most `max_bytes` in memory.

    Raises:
        InputError: missing, truncated, no zip file of arrays, or too large.
        UnsafeError: an array holds pickled objects.
    """
    regular_file(path, "npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(archive, path, max_bytes)
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged, or no npz file ({error})") from error


def read_npy(path: Path, *, max_bytes: int = MAX_ARRAY_BYTES) -> NDArray[Any]:
    """Read an `.npy` file of at most `max_bytes`.

    Raises:
        InputError: missing, truncated, no npy file, or too large.
        UnsafeError: it holds pickled objects.
    """
    size = regular_file(path, "npy file").st_size
    try:
        with path.open("rb") as file:
            _check_header(file, f"{path}", size, max_bytes)
            file.seek(0)
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
            return array
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged, or no npy file ({error})") from error


def _read_members(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise InputError(f"{path}: two arrays of one name")
    left = max_bytes
    for member in members:  # all headers first: nothing large is read from a file that is refused
        with archive.open(member) as file:
            left -= _check_header(file, _place(path, member), member.file_size, left)
    arrays = {}
    for member in members:
        with archive.open(member) as file:
            arrays[member.filename.removesuffix(".npy")] = npy.read_array(file, allow_pickle=False)
    return arrays


def _check_header(file: IO[bytes], where: str, size: int, max_bytes: int) -> int:
    """Read an array's header, check it against the `size` of its file, and return the array's bytes."""
    version = npy.read_magic(file)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version in reader:
        shape, _, dtype = reader[version](file)
    else:
        # 3.0 only adds field names in UTF-8, and records are refused below anyway.
        raise InputError(f"{where}: npy format {version[0]}.{version[1]}; expected 1.0 or 2.0")
    if dtype.hasobject:
        raise UnsafeError(f"{where}: holds pickled Python objects, which run code when read")
    if dtype.kind not in "biufcSU" or dtype.fields:
        raise InputError(f"{where}: dtype {dtype}; expected numbers, bools or texts")
    if any(dim < 0 for dim in shape):
        raise InputError(f"{where}: a negative dimension in {shape}")
    total = math.prod(shape) * int(dtype.itemsize)
    if total > max_bytes:
        raise InputError(f"{where}: its arrays take more than {max_bytes} bytes")
    if total > size:
        raise InputError(f"{where}: truncated: {size} bytes, its header says {total}")
    return total


def _place(path: Path, member: zipfile.ZipInfo) -> str:
    return f"{path}[{printable(member.filename, limit=80)}]"
