"""The names of columns, and the renaming of foreign ones (`--column name=their_name`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxkit.errors import InputError, UsageError, suggestion

COLUMNS: tuple[str, ...] = (
    "text",
    "text_pair",
    "question",
    "context",
    "prompt",
    "messages",
    "image",
    "audio",
    "label",
    "labels",
    "target",
)
"""What every command calls the columns of its samples."""

PATH_COLUMNS: tuple[str, ...] = ("image", "audio")
"""Columns whose text is a path, relative to the file that names it."""


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a renaming whose left side is no column of ours.

    Raises:
        UsageError: with the nearest names.
    """
    for name in columns:
        if name not in COLUMNS:
            raise UsageError(f"there is no column {name!r}; {suggestion(name, COLUMNS)}")


def rename(values: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return `values` with every column that `columns` maps under our name instead of theirs.

    Raises:
        InputError: a column that `columns` names is not there.
    """
    renamed = {key: value for key, value in values.items() if key not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in values:
            have = ", ".join(sorted(map(str, values))) or "none"
            raise InputError(
                f"{where}: there is no column {theirs!r} (columns: {have}); mend --column {ours}=…"
            )
        renamed[ours] = values[theirs]
    return renamed
