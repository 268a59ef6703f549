"""Small files of text: chat templates, grammars."""

from __future__ import annotations

from pathlib import Path

from onnxkit.errors import InputError
from onnxkit.safety.paths import regular_file
from onnxkit.safety.text import printable


def read_text(path: Path, what: str, *, max_bytes: int) -> str:
    """Read a text of at most `max_bytes` bytes.

    Raises:
        InputError: missing, too large, not readable, or not UTF-8.
    """
    size, shown = regular_file(path).st_size, printable(str(path), limit=300)
    if size > max_bytes:
        raise InputError(f"{shown}: {size} bytes of {what}; at most {max_bytes} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from error
