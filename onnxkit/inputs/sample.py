"""A sample: a mapping from column names to values, which may know where it was read, as may what is fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from onnxkit.errors import InputError, ResourceError

Sample = Mapping[str, Any]


class Located(dict[str, Any]):
    """A sample read from a file or a stream.

    Attributes:
        where: "reviews.jsonl:12", what an error about this sample names.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


class LocatedBatch(dict[str, Any]):
    """A model's inputs for some rows.

    Attributes:
        places: of the samples, by rows; the last rows may be padding and have none.
    """

    def __init__(self, feeds: Mapping[str, Any], places: Sequence[str]) -> None:
        super().__init__(feeds)
        self.places = tuple(places)


@contextmanager
def blamed(where: str) -> Iterator[None]:
    """Let an error of running a model name the sample that it was run on, and how to mend that."""
    try:
        yield
    except InputError as error:
        if where in str(error):
            raise
        raise InputError(f"{where}: {error}; mend this sample or leave it out") from error
    except ResourceError as error:
        raise ResourceError(f"{where}: {error}") from error


def place(sample: Sample, index: int | None = None) -> str:
    """Return where a sample comes from: its line when it was read from a file, else its position."""
    if isinstance(sample, Located):
        return sample.where
    return "the sample" if index is None else f"sample {index}"
