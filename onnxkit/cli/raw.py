"""`onnxkit run --inputs`: raw tensors in, raw tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.cli import figures
from onnxkit.cli.console import Column, Console
from onnxkit.cli.options import reject
from onnxkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from onnxkit.runtime import RuntimeOptions

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def run(
    console: Console,
    model: Path,
    tensors: Path,
    runtime: RuntimeOptions,
    *,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Run `model` once on the arrays of an .npz file, and write or describe its outputs.

    Raises:
        UsageError: the output exists, or is no .npz file.
        InputError: arrays of wrong names, dtypes or shapes.
    """
    if output is None:
        reject(overwrite, "--overwrite", "there is no --output")
    else:
        _check_output(output, overwrite)
    from onnxkit.artifact import ModelDir
    from onnxkit.runtime import open_session
    from onnxkit.safety import read_npz

    arrays = read_npz(tensors)
    session = open_session(ModelDir.open(model).model_file, runtime)
    console.note(
        f"{model}: {session.provider}, {figures.plural(session.threads.count, 'thread')} "
        f"({session.threads.source})"
    )
    results = session.run(arrays)
    if output is not None:
        _save(output, results, overwrite)
    described = [describe(name, array) for name, array in results.items()]
    console.result("run", described, lambda console, rows: _show(console, rows, output), data=output is None)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix != ".npz":
        raise UsageError(f"--output {output}: the name must end in .npz")
    from onnxkit.artifact import check_file

    check_file(output, overwrite=overwrite)


def _save(output: Path, arrays: Arrays, overwrite: bool) -> None:
    import numpy as np

    from onnxkit.artifact import publish_file

    with publish_file(output, overwrite=overwrite) as staging, staging.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **dict(arrays))


def describe(name: str, array: Any) -> dict[str, Any]:
    """Summarize an output: dtype, shape, and the range and mean of its finite values."""
    import numpy as np

    numeric = array.dtype.kind in "fiubV"  # V: bfloat16
    numbers = array.astype("float64").ravel() if numeric else None
    facts: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if numbers is None or not numbers.size:
        return {**facts, "min": None, "max": None, "mean": None, "finite": True}
    finite = numbers[np.isfinite(numbers)]
    some = finite.size > 0
    return {
        **facts,
        "min": float(finite.min()) if some else None,
        "max": float(finite.max()) if some else None,
        "mean": float(finite.mean()) if some else None,
        "finite": finite.size == numbers.size,
    }


def _show(console: Console, rows: list[dict[str, Any]], output: Path | None) -> None:
    columns = [Column("output"), Column("dtype"), Column("shape")]
    columns += [Column(name, number=True) for name in ("min", "max", "mean")]
    console.table(
        columns,
        [
            (
                row["name"],
                row["dtype"] + ("" if row["finite"] else ", not finite"),
                figures.shape(row["shape"]),
                *(figures.digits(row[name]) for name in ("min", "max", "mean")),
            )
            for row in rows
        ],
    )
    if output is not None:
        console.line(f"wrote {output}")
