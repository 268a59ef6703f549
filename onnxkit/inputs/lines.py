"""Lines of UTF-8 text with their numbers, bounded in length; txt and jsonl on top of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from onnxkit.errors import InputError

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is refused: it is no text, or not one a line."""

Row = tuple[str, dict[str, Any]]
"""Where it stands ("data.csv:7") and its values."""

_BOM = b"\xef\xbb\xbf"


Lines = Iterator[tuple[int, str]]
"""Numbers (from 1) and texts of lines, without the line ends."""


def read_lines(stream: BinaryIO, name: str) -> Lines:
    r"""Yield (number from 1, text without its line end) for each line; only "\n" ends a line.

    Raises:
        InputError: a line that is not UTF-8, or longer than `MAX_LINE_BYTES`; it names the line.
    """
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{name}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MB")
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}:{number}: byte {error.start + 1} of the line is not UTF-8; convert it with iconv"
            ) from error
        yield number, text.removesuffix("\n").removesuffix("\r")


def read_txt(lines: Lines, name: str) -> Iterator[Row]:
    """Yield each line as a `text`, blank ones too, so that results line up with the file."""
    for number, text in lines:
        yield f"{name}:{number}", {"text": text}


def read_jsonl(lines: Lines, name: str) -> Iterator[Row]:
    """Yield each line's JSON object; blank lines are skipped.

    Raises:
        InputError: a line that is no JSON object.
    """
    for number, text in lines:
        if text.strip():
            yield f"{name}:{number}", parse_object(text, f"{name}:{number}")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object; raises InputError that names the place otherwise."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise InputError(
            f'{where}: expected a JSON object such as {{"text": "…"}}, got {type(value).__name__}'
        )
    return value
