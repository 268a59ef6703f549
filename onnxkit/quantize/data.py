"""Samples for calibration and for measuring: read once, chosen by the seed, split so that they never meet."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.inputs import Sample, read_samples
from onnxkit.progress import Progress
from onnxkit.tasks import Task, feeds, task_for

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.runtime import TensorSpec

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

HELD_OUT_SHARE = 5  # one sample in five of a calibration set stays out of it,
MOST_HELD_OUT = 64  # or what is left over, but no more than this
MOST_COMPARED = 256  # samples whose outputs are compared; a metric is taken over all


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """Chosen samples, and how they become a model's inputs.

    Attributes:
        source: the file, for reports.
        samples: in the file's order.
        total: how many the file holds.
        task: what pre-processes them, as `run` does; None: they are feeds already.
    """

    source: str
    samples: tuple[Sample, ...]
    total: int
    task: Task | None

    def feeds(self, batch_size: int, progress: Progress) -> Iterator[Feeds]:
        """Yield the model's inputs, `batch_size` samples at a time (raw tensors: one)."""
        if self.task is None:
            yield from self.samples
        else:
            yield from feeds(self.task, self.samples, batch_size=batch_size, progress=progress)

    def subset(self, positions: Sequence[int]) -> DataSet:
        """The samples at these positions."""
        return dataclasses.replace(self, samples=tuple(self.samples[i] for i in sorted(positions)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A calibration set and the part kept out of it (None where it is too small, or nobody asked)."""

    calibration: DataSet
    held_out: DataSet | None


def read_data(
    path: Path,
    model: ModelDir,
    *,
    most: int,
    columns: Mapping[str, str],
    seed: int,
    task: str | None,
) -> DataSet:
    """Read a file or folder and keep `most` samples of it, chosen uniformly by the seed.

    Raises:
        InputError: an empty or malformed file; an npz whose arrays do not fit the model's inputs.
    """
    rows = _rows(path, model, columns)
    chosen, total = reservoir(rows, most, seed)
    if not chosen:
        raise InputError(f"{path}: holds no samples")
    raw = _is_raw(chosen[0], model)
    return DataSet(
        source=str(path), samples=tuple(chosen), total=total, task=None if raw else task_for(model, task=task)
    )


def split(data: DataSet, *, samples: int, hold_out: bool, seed: int) -> Split:
    """Divide a set into at most `samples` for calibration and a part that stays out of it.

    What `samples` leaves over is kept out, and one in five at least, 64 at most. Fewer than five samples
    all go into calibration.
    """
    count = len(data.samples)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held = min(max(count // HELD_OUT_SHARE, count - samples), MOST_HELD_OUT) if hold_out else 0
    held = 0 if count < HELD_OUT_SHARE else held
    calibration = data.subset(order[held : held + samples])
    return Split(calibration=calibration, held_out=data.subset(order[:held]) if held else None)


def most_to_read(samples: int, *, hold_out: bool) -> int:
    """How many samples of a calibration file are worth keeping in memory."""
    return samples + (MOST_HELD_OUT if hold_out else 0)


def reservoir(items: Iterable[Sample], most: int, seed: int) -> tuple[list[Sample], int]:
    """Keep `most` items of a stream, uniformly, in their order (Vitter's algorithm R, 1985)."""
    rng = random.Random(seed)
    kept: list[tuple[int, Sample]] = []
    total = 0
    for number, item in enumerate(items):
        total += 1
        if len(kept) < most:
            kept.append((number, item))
        elif (place := rng.randrange(total)) < most:
            kept[place] = (number, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])], total


def _rows(path: Path, model: ModelDir, columns: Mapping[str, str]) -> Iterator[Sample]:
    """Samples of a file or folder; raw tensors are divided into single rows."""
    arrays = sorted(path.glob("*.npz")) if path.is_dir() else []
    for file in arrays or [path]:
        for sample in read_samples(file, columns=columns):
            if _is_raw(sample, model):
                yield from single_rows(sample, _inputs(model), str(file))
            else:
                yield sample


def _inputs(model: ModelDir) -> Sequence[TensorSpec]:
    """What is fed from outside: an encoder's inputs where there are several graphs."""
    return next(iter(model.components.values())).inputs


def _is_raw(sample: Sample, model: ModelDir) -> bool:
    names = {spec.name for spec in _inputs(model)}
    return bool(names & set(sample)) and all(isinstance(value, np.ndarray) for value in sample.values())


def single_rows(sample: Sample, specs: Sequence[TensorSpec], where: str) -> Iterator[Sample]:
    """Divide a set of tensors along its batch axis; tensors without one go into every row.

    Raises:
        InputError: names, dtypes or ranks differ from the model's, or the batch sizes differ.
    """
    expected = {spec.name: spec for spec in specs}
    if set(sample) != set(expected):
        raise InputError(
            f"{where}: holds {', '.join(sorted(sample))}; "
            f"the model's inputs are {', '.join(sorted(expected))}"
        )
    for name, spec in expected.items():
        array = sample[name]
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise InputError(
                f"{where}: {name} is {array.dtype.name} of rank {array.ndim}; the model takes {spec.dtype} of"
                f" rank {len(spec.shape)}"
            )
    batched = [
        name
        for name, spec in expected.items()
        if spec.shape and (spec.shape[0] == 1 or not isinstance(spec.shape[0], int))
    ]
    sizes = {len(sample[name]) for name in batched}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {len(sample[name])}" for name in batched)
        raise InputError(f"{where}: the batch sizes differ ({listed})")
    for row in range(sizes.pop() if sizes else 1):
        yield {name: array[row : row + 1] if name in batched else array for name, array in sample.items()}
