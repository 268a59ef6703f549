"""A sample: a mapping from column names to values, which may know where it was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sample = Mapping[str, Any]


class Located(dict[str, Any]):
    """A sample read from a file or a stream.

    Attributes:
        where: "reviews.jsonl:12", what an error about this sample names.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def place(sample: Sample, index: int | None = None) -> str:
    """Return where a sample comes from: its line when it was read from a file, else its position."""
    if isinstance(sample, Located):
        return sample.where
    return "the sample" if index is None else f"sample {index}"
