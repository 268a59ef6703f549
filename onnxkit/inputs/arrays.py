"""Samples from an .npz file: rows of columns, or one set of raw tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnxkit.errors import InputError
from onnxkit.inputs.columns import COLUMNS
from onnxkit.inputs.lines import Row
from onnxkit.safety import read_npz


def read_arrays(path: Path, name: str) -> Iterator[Row]:
    """Yield samples from arrays.

    Arrays that are named like columns (`image`, `label`, …) are split along their first axis, a
    sample a row. Arrays of other names are a model's inputs, batch axis included, and make one
    sample.

    Raises:
        InputError: no arrays, or columns of different lengths.
    """
    arrays = read_npz(path)
    if not arrays:
        raise InputError(f"{name}: holds no arrays")
    if not set(arrays) <= set(COLUMNS):
        yield name, dict(arrays)
        return
    lengths = {column: array.shape[0] if array.ndim else 0 for column, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise InputError(f"{name}: the columns differ in length ({described})")
    for row in range(min(lengths.values())):
        values = {column: array[row] for column, array in arrays.items()}
        yield f"{name}[{row}]", {key: value if value.ndim else value.item() for key, value in values.items()}
