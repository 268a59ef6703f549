"""What a layer's input looks like, from ONNX Runtime: magnitudes and moments of its channels, Hessians.

One pass over the calibration set gives all of it, a run's activations in memory at a time. Hessians are
large (`[K, K]` each): where they do not fit the budget together, they are made in groups, with a pass each,
and kept in files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.graph.edit import stored_sizes
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.collect import checked
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.runs import Graph, Run, runs
from onnxkit.quantize.input_statistics import Floats, InputStatistics
from onnxkit.quantize.operators import Target
from onnxkit.runtime import RuntimeOptions

BUDGET_BYTES = 1 << 30
BLOCK_TOKENS = 512
"""Tokens that are collected before they go into a Hessian: a product of fewer wastes the time on the sums."""

SAMPLE = 256
"""Tokens that are kept of each value, at least, where there are so many."""


def collect_statistics(
    graph: Graph,
    targets: Sequence[Target],
    data: DataSet,
    *,
    hessians: bool,
    scratch: Path,
    runtime: RuntimeOptions,
    progress: Progress,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, InputStatistics]:
    """Run the samples and return the statistics of the linear targets' inputs, by value name.

    Args:
        graph: the float graph.
        targets: layers of it; those that are no matrix products are passed over.
        data: the samples.
        hessians: whether Hessians are wanted.
        scratch: a folder of its own. Hessians that do not fit the budget together lie there and are
            mapped into memory: keep it until they are used.
        runtime: of the session.
        progress: is told how far it is.
        budget_bytes: of Hessians in memory.

    Raises:
        InputError: no samples, or one that makes NaN or infinity; names it.
    """
    widths = _widths(targets)
    found: dict[str, InputStatistics] = {}
    groups = list(_groups(widths, budget_bytes)) if hessians else [list(widths)]
    for number, names in enumerate(groups, 1):
        text = "collecting statistics" + (f" ({number} of {len(groups)})" if len(groups) > 1 else "")
        folder = scratch / "run"
        made = runs(graph, names, data, scratch=folder, runtime=runtime, progress=progress, text=text)
        group = gather(made, {name: widths[name] for name in names}, hessians=hessians)
        found |= group if len(groups) == 1 else _spilled(group, scratch / f"hessians-{number}")
    return found


def gather(made: Iterable[Run], widths: dict[str, int], *, hessians: bool) -> dict[str, InputStatistics]:
    """Return the statistics of named values, K wide each, over some runs."""
    sums = {name: _Sums(width, hessian=hessians) for name, width in widths.items()}
    seen = False
    for run in made:
        seen = True
        for name, one in sums.items():
            array, width = checked(run, name), widths[name]
            if array.size % width:
                raise InputError(
                    f"{run.where}: '{name}' has shape {array.shape}; the model takes {width} wide"
                )
            one.add(array.reshape(-1, width))
    if not seen and widths:
        raise InputError("the calibration set is empty")
    found = {name: one.result() for name, one in sums.items()}
    for name, each in found.items():
        if not np.isfinite(each.mean_square).all():
            raise InputError(
                f"the calibration set makes values of up to {each.absmax.max():.1e} in '{name}', whose "
                "squares float32 does not hold: check the samples and the weights"
            )
    return found


class _Sums:
    """Accumulates the statistics of one value.

    Sums of blocks are float32, by BLAS; their totals float64, but the Hessian's: at some dozens of blocks
    float32 keeps six digits of it, and float64 would take twice the memory.
    """

    def __init__(self, width: int, *, hessian: bool) -> None:
        self._count = 0
        self._absmax = np.zeros(width, np.float32)
        self._sum = np.zeros(width, np.float64)
        self._squares = np.zeros(width, np.float64)
        self._hessian = np.zeros((width, width), np.float32) if hessian else None
        self._waiting: list[Floats] = []
        self._sample = _Sample(width)

    def add(self, x: Floats) -> None:
        """Take in [tokens, K]; a part of it may be copied until there are enough for a product."""
        self._count += len(x)
        np.maximum(self._absmax, x.max(axis=0), out=self._absmax)
        np.maximum(self._absmax, -x.min(axis=0), out=self._absmax)
        self._sum += x.sum(axis=0)
        self._sample.add(x)
        if self._hessian is None:
            self._squares += np.einsum("tk,tk->k", x, x)
        elif len(x) >= BLOCK_TOKENS:
            self._multiply(x)
        else:
            self._waiting.append(x.copy())
            if sum(map(len, self._waiting)) >= BLOCK_TOKENS:
                self._flush()

    def result(self) -> InputStatistics:
        """The statistics so far; nothing may be added afterwards."""
        self._flush()
        hessian = self._hessian
        if hessian is not None:
            self._squares[:] = hessian.diagonal()
            hessian /= np.float32(self._count)
        return InputStatistics(
            count=self._count,
            absmax=self._absmax,
            mean=(self._sum / self._count).astype(np.float32),
            mean_square=(self._squares / self._count).astype(np.float32),
            hessian=hessian,
            sample=self._sample.rows,
        )

    def _flush(self) -> None:
        if self._waiting:
            self._multiply(np.concatenate(self._waiting))
            self._waiting.clear()

    def _multiply(self, x: Floats) -> None:
        if self._hessian is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in the end
                self._hessian += x.T @ x  # numpy makes one triangle of it (syrk)


class _Sample:
    """Keeps every n-th row, in order; n doubles when there are twice as many as wanted."""

    def __init__(self, width: int) -> None:
        self.rows = np.zeros((0, width), np.float32)
        self._step, self._seen = 1, 0

    def add(self, x: Floats) -> None:
        """Take in [tokens, K]."""
        taken = x[-self._seen % self._step :: self._step]
        self._seen += len(x)
        self.rows = np.concatenate([self.rows, taken])
        while len(self.rows) > 2 * SAMPLE:
            self.rows, self._step = self.rows[::2].copy(), 2 * self._step


def _widths(targets: Sequence[Target]) -> dict[str, int]:
    """Name and width K of every linear target's input, in graph order."""
    found: dict[str, int] = {}
    for target in targets:
        if target.kind == "linear" and target.activation is not None:
            found[str(target.activation.name)] = stored_sizes(target.weight)[1 - target.channel_axis]
    return found


def _groups(widths: dict[str, int], budget: int) -> Iterator[list[str]]:
    """Names in order, in groups whose Hessians fit the budget (one alone may not)."""
    group: list[str] = []
    used = 0
    for name, width in widths.items():
        size = 4 * width * width
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _spilled(group: dict[str, InputStatistics], folder: Path) -> dict[str, InputStatistics]:
    """Move the Hessians into files, mapped read-only."""
    folder.mkdir(parents=True, exist_ok=True)
    moved = {}
    for number, (name, one) in enumerate(group.items()):
        path = folder / f"{number}.npy"
        hessian: Any = one.hessian
        np.save(path, hessian)
        moved[name] = dataclasses.replace(one, hessian=np.load(path, mmap_mode="r"))
    return moved
