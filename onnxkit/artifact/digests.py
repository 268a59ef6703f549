"""SHA-256 of files, read in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxkit.errors import InputError

_PIECE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest says of one file.

    Attributes:
        sha256: 64 lowercase hexadecimal digits.
        size_bytes: its size.
    """

    sha256: str
    size_bytes: int


def file_entry(path: Path) -> FileEntry:
    """Read `path` in pieces of 1 MiB and return its digest and size.

    Raises:
        InputError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return FileEntry(sha256=digest.hexdigest(), size_bytes=size)


def combined_digest(files: Mapping[str, FileEntry]) -> str:
    """Return one digest of many files, `sha256:<hex>`, whatever their order.

    It is the SHA-256 of the lines `<sha256>  <size>  <name>`, sorted by name.
    """
    lines = (f"{entry.sha256}  {entry.size_bytes}  {name}\n" for name, entry in sorted(files.items()))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
