"""One way in for every kind of input: `read_samples`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs.columns import PATH_COLUMNS, check_columns, rename
from onnxkit.inputs.lines import Lines, Row, read_jsonl, read_lines, read_txt
from onnxkit.inputs.media import MEDIA_SUFFIXES, read_audio, read_folder, read_image
from onnxkit.inputs.sample import Located
from onnxkit.inputs.tables import read_csv, read_parquet, read_tsv

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet", "npz", "image", "audio", "folder"]


def _read_npz(path: Path, name: str) -> Iterator[Row]:
    from onnxkit.inputs.arrays import read_arrays

    return read_arrays(path, name)


_LINES: Mapping[str, Callable[[Lines, str], Iterator[Row]]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
}
_FILES: Mapping[str, Callable[[Path, str], Iterator[Row]]] = {
    "parquet": read_parquet,
    "npz": _read_npz,
    "image": read_image,
    "audio": read_audio,
    "folder": read_folder,
}
_SUFFIXES: Mapping[str, str] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".npz": "npz",
    **MEDIA_SUFFIXES,
}
FORMATS: tuple[str, ...] = (*_LINES, *_FILES)
"""The names that `format` takes."""


def read_samples(
    source: str | Path, *, columns: Mapping[str, str] | None = None, format: Format | None = None
) -> Iterator[Located]:
    """Yield the samples of a file, a folder of images or audio, or standard input (`-`), one at a time.

    Args:
        source: a path to txt (a text a line), jsonl, csv, tsv, parquet, npz, an image, an audio file, a
            folder of these two; or "-".
        columns: our column names and theirs: {"text": "sentence"}.
        format: the format, when it does not follow from the suffix. Standard input is jsonl when its
            first line is a JSON object, else txt.

    Relative paths in an `image` or `audio` column are meant from the folder of the file.

    Raises:
        InputError: a path that is not there, an empty input, a malformed line (all name the place).
        EnvironmentProblem: the format needs a package that is not installed.
        UsageError: a column name in `columns` that does not exist.
    """
    columns = columns or {}
    check_columns(columns)
    if str(source) == "-":
        base, rows = Path(), _read_stdin(format)
    else:
        path = Path(source)
        base, rows = path.parent, _read_path(path, format)
    return _finish(rows, "standard input" if str(source) == "-" else str(source), base, columns)


def _finish(rows: Iterable[Row], name: str, base: Path, columns: Mapping[str, str]) -> Iterator[Located]:
    where = None
    for where, values in rows:
        sample = Located(rename(values, columns, where) if columns else values, where)
        for column in PATH_COLUMNS:
            value = sample.get(column)
            if isinstance(value, str):
                sample[column] = base / value
        yield sample
    if where is None:
        raise InputError(f"{name}: holds no samples")


def _read_path(path: Path, format: str | None) -> Iterator[Row]:
    format = format or _format_of(path)
    name = str(path)
    if format in _FILES:
        yield from _FILES[format](path, name)
        return
    with _opened(path) as stream:
        yield from _LINES[format](read_lines(stream, name), name)


def _format_of(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    format = _SUFFIXES.get(path.suffix.lower())
    if format is None:
        known = ", ".join(suffix for suffix in _SUFFIXES if suffix not in MEDIA_SUFFIXES)
        raise InputError(
            f"{path}: the format does not follow from the suffix ({known}, image, audio); rename the file, "
            "or name the format where the command takes one (run --format)"
        )
    return format


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def _read_stdin(format: Format | None) -> Iterator[Row]:
    name = "standard input"
    if format in _FILES:
        raise UsageError(f"{format} is not read from standard input; give a path")
    lines = read_lines(sys.stdin.buffer, name)
    if format is None:
        format, lines = _detect(lines)
    return _LINES[format](lines, name)


def _detect(lines: Lines) -> tuple[Format, Lines]:
    """Look at the first line that is not blank, and return the lines whole again."""
    seen = []
    for number, text in lines:
        seen.append((number, text))
        if text.strip():
            break
    format: Format = "jsonl" if seen and _is_object(seen[-1][1]) else "txt"
    return format, itertools.chain(seen, lines)


def _is_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (json.JSONDecodeError, RecursionError):
        return False
