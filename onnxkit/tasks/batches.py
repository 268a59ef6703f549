"""From samples to batches of feeds: windows, sorting by length, padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from onnxkit.inputs import Located, LocatedBatch, Sample
from onnxkit.progress import Progress
from onnxkit.tasks.base import Encoded, Task

T = TypeVar("T")


def chunks(items: Iterable[T], size: int, *, first: int | None = None) -> Iterator[list[T]]:
    """Yield lists of `size` items; with `first`, smaller ones first that double up to `size`.

    The growing start lets a stream's first results appear at once.
    """
    iterator = iter(items)
    now = min(first or size, size)
    while chunk := list(itertools.islice(iterator, now)):
        yield chunk
        now = min(now * 2, size)


def located(task: Task, items: Iterable[Any]) -> Iterator[Located]:
    """Turn items into samples that know their place: the file's line, else "sample 3" (from 0)."""
    for index, item in enumerate(items):
        sample = task.sample_of(item)
        yield sample if isinstance(sample, Located) else Located(sample, f"sample {index}")


def by_length(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of positions in `rows`, rows of like length together, longest first.

    Longest first makes a too large batch fail at the start, and lets ONNX Runtime's arena take its
    largest blocks once.
    """
    order = sorted(range(len(rows)), key=lambda position: -rows[position].length)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def rows_a_run(task: Task, wanted: int) -> int:
    """Return how many rows go into a run: `wanted`, where the model leaves the choice."""
    return (task.fixed_batch or wanted) if task.batched else 1


def filled(task: Task, rows: list[Encoded]) -> list[Encoded]:
    """Repeat the last row until there are as many as the graph insists on."""
    return rows + rows[-1:] * ((task.fixed_batch or 0) - len(rows))


def feeds(
    task: Task,
    samples: Iterable[Sample],
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[LocatedBatch]:
    """Yield the model's inputs for samples, as `run` would feed them (calibration uses this).

    Batches are formed of rows of like length within a window, so their order is not the samples'.

    Args:
        task: what pre-processes.
        samples: any number; held in memory a window at a time.
        batch_size: rows a batch, at most.
        progress: is warned, once, how many samples were cut.
    """
    remarks = Remarks()
    for window in chunks(located(task, samples), task.window):
        groups = task.rows(window)
        remarks.count(groups)
        rows = list(itertools.chain.from_iterable(groups))
        for batch in by_length(rows, rows_a_run(task, batch_size)):
            chosen = [rows[position] for position in batch]
            made = task.collate(filled(task, chosen))
            yield LocatedBatch(made, [row.where for row in chosen])
    remarks.warn(progress or Progress(), task)


class Remarks:
    """Counts the samples that were cut, and those with a caution, to warn once about all of them."""

    def __init__(self) -> None:
        self.truncated = 0
        self.total = 0
        self._cautioned = 0
        self._caution = ""

    def count(self, groups: Iterable[Sequence[Encoded]]) -> None:
        """Take note of the rows of samples, one group a sample."""
        for rows in groups:
            self.total += 1
            self.truncated += any(row.truncated for row in rows)
            caution = next((row.caution for row in rows if row.caution), "")
            self._cautioned += bool(caution)
            self._caution = self._caution or caution

    def warn(self, progress: Progress, task: Task) -> None:
        """Say what is wrong with the first that has a caution, and how many were cut, if any."""
        if self._caution:
            more = self._cautioned - 1
            also = f"; so it is with {more:,} more of the {task.noun}" if more else ""
            progress.warn(f"{self._caution}{also}")
        if self.truncated:
            hint = "" if task.generates or task.limit is None else " (--max-length)"
            progress.warn(
                f"{self.truncated:,} of {self.total:,} {task.noun} were longer than the {task.longest} that "
                f"are read, and were cut there{hint}"
            )
