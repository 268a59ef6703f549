"""Tables: csv and tsv by the standard library, parquet by the `data` extra."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxkit.errors import EnvironmentProblem, InputError
from onnxkit.inputs.lines import MAX_LINE_BYTES, Lines, Row

_PARQUET_ROWS = 256


def read_csv(lines: Lines, name: str, delimiter: str = ",") -> Iterator[Row]:
    """Yield the rows below the header; values stay text.

    Raises:
        InputError: a row with another number of fields than the header, a broken quote, bad UTF-8.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((f"{text}\n" for _, text in lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_header(header, name)
        begin = reader.line_num + 1
        for fields in reader:
            where, begin = f"{name}:{begin}", reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(header):
                raise InputError(f"{where}: {len(fields)} fields, but the header has {len(header)}")
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: {error}") from error


def read_tsv(lines: Lines, name: str) -> Iterator[Row]:
    """Yield the rows of a table whose fields are separated by tabs."""
    return read_csv(lines, name, delimiter="\t")


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a parquet file, a few hundred in memory at a time.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        InputError: the file is no parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EnvironmentProblem(f"{name}: parquet needs pyarrow: pip install 'onnxkit[data]'") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                rows: list[dict[str, Any]] = batch.to_pylist()
                for row in rows:
                    number += 1
                    yield f"{name}:row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{name}: not a readable parquet file: {error}") from error


def _check_header(header: list[str], name: str) -> None:
    repeated = {column for column in header if header.count(column) > 1}
    if repeated:
        raise InputError(f"{name}:1: the header repeats {', '.join(sorted(repeated))}")
