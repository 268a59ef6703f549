"""Samples for calibration and for measuring: read once, chosen by the seed, split so that they never meet."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.artifact.digests import file_entry
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import LocatedBatch, Sample, place, read_samples
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.random_data import random_feeds, random_samples
from onnxkit.quantize.calibration.raw import input_specs, is_raw, single_rows
from onnxkit.quantize.options import RANDOM
from onnxkit.tasks import Task, feeds, task_for
from onnxkit.tasks.batches import Remarks, filled, located
from onnxkit.tasks.generating import GeneratingTask

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

HELD_OUT_SHARE = 5  # one sample in five of a calibration set stays out of it,
MOST_HELD_OUT = 64  # or what is left over, but no more than this
MOST_COMPARED = 256  # samples whose outputs are compared; a metric is taken over all

MAX_LENGTH = 512
"""Tokens of a text that a model which generates is run on, unless told otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """Chosen samples, and how they become a model's inputs.

    Attributes:
        source: the file, for reports.
        samples: in the file's order.
        total: how many the file holds.
        task: what pre-processes them, as `run` does; None: they are feeds already, or random.
        model: the directory whose inputs they become.
        max_length: tokens that a text is cut to; None: what the model takes.
        random: the samples are seeds.
    """

    source: str
    samples: tuple[Sample, ...]
    total: int
    task: Task | None
    model: ModelDir
    max_length: int | None = None
    random: bool = False

    def feeds(self, batch_size: int, progress: Progress) -> Iterator[LocatedBatch]:
        """Yield the model's inputs, `batch_size` samples at a time (raw tensors and random data: one)."""
        if self.task is None:
            yield from (made for _, made in self.numbered_feeds(progress))
        else:
            yield from feeds(self.task, self.samples, batch_size=batch_size, progress=progress)

    def place(self, number: int) -> str:
        """Where the sample with this number, from 1, comes from."""
        return f"random sample {number}" if self.random else place(self.samples[number - 1], number)

    def numbered_feeds(self, progress: Progress) -> Iterator[tuple[int, LocatedBatch]]:
        """Yield (number of the sample from 1, feeds) in order, one sample in memory at a time."""
        if self.task is None:
            for number, sample in enumerate(self.samples, 1):
                made = random_feeds(self.model, sample) if self.random else sample
                yield number, LocatedBatch(made, [self.place(number)])
            return
        remarks = Remarks()
        for number, sample in enumerate(located(self.task, self.samples), 1):
            groups = self.task.rows([sample])
            remarks.count(groups)
            for row in groups[0]:
                yield number, LocatedBatch(self.task.collate(filled(self.task, [row])), [row.where])
        remarks.warn(progress, self.task)

    def subset(self, positions: Sequence[int]) -> DataSet:
        """The samples at these positions."""
        return dataclasses.replace(self, samples=tuple(self.samples[i] for i in sorted(positions)))

    def digest(self) -> str:
        """One digest of the samples, what files they name, and how they are read: `sha256:<hex>`."""
        total = hashlib.sha256()
        how = [self.task.name if self.task else "tensors", self.max_length, self.random, len(self.samples)]
        total.update(repr(how).encode())
        for sample in self.samples:
            for name in sorted(sample):
                total.update(f"\0{name}\0".encode())
                total.update(_content(sample[name]))
        return f"sha256:{total.hexdigest()}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A calibration set and the part kept out of it (None where it is too small, or nobody asked)."""

    calibration: DataSet
    held_out: DataSet | None


def read_data(
    path: Path | str,
    model: ModelDir,
    *,
    most: int,
    columns: Mapping[str, str],
    seed: int,
    task: str | None,
    max_length: int | None = None,
) -> DataSet:
    """Read a file or folder and keep `most` samples of it, chosen uniformly by the seed.

    `options.RANDOM` makes `most` random samples. Blank lines of a text file are no samples.

    Raises:
        InputError: an empty or malformed file; an npz whose arrays do not fit the model's inputs.
        UsageError: a `max_length` that does not apply, or leaves nothing.
    """
    if max_length is not None and max_length < 2:
        raise UsageError(f"--max-length {max_length}: at least 2")
    if str(path) == RANDOM:
        samples = random_samples(model, most, seed, max_length)
        source = "seeded random data"
        return DataSet(source=source, samples=samples, total=most, task=None, model=model, random=True)
    chosen, total = reservoir(_rows(Path(path), model, columns), most, seed)
    if not chosen:
        raise InputError(f"{path}: holds no samples")
    made = None if is_raw(chosen[0], model) else _task(model, task, max_length)
    if made is None and max_length is not None:
        raise UsageError(f"--max-length does not apply: {path} holds tensors")
    if made is not None and made.generates:
        max_length = made.limit
    return DataSet(
        source=str(path), samples=tuple(chosen), total=total, task=made, model=model, max_length=max_length
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


def _task(model: ModelDir, task: str | None, max_length: int | None) -> Task:
    """The task; one that generates is told the length here, as it has no option for that."""
    made = task_for(model, task=task)
    if not made.generates:
        return made if max_length is None else task_for(model, task=task, max_length=max_length)
    length = max_length or MAX_LENGTH
    made.limit = length if made.limit is None else min(made.limit, length)
    if isinstance(made, GeneratingTask) and made.setup.tokenizer.truncation is not None:
        made.setup.tokenizer.enable_truncation(made.limit, direction=made.setup.truncation_side)
    return made


def _rows(path: Path, model: ModelDir, columns: Mapping[str, str]) -> Iterator[Sample]:
    """Samples of a file or folder; raw tensors are divided into single rows."""
    arrays = sorted(path.glob("*.npz")) if path.is_dir() else []
    for file in arrays or [path]:
        for sample in read_samples(file, columns=columns):
            if is_raw(sample, model):
                yield from single_rows(sample, input_specs(model), sample.where)
            elif not _blank(sample):
                yield sample


def _blank(sample: Sample) -> bool:
    return len(sample) == 1 and isinstance(text := sample.get("text"), str) and not text.strip()


def _content(value: Any) -> bytes:
    """What a sample's value is, as bytes: a file's content by its digest."""
    if isinstance(value, Path):
        return file_entry(value).sha256.encode() if value.is_file() else str(value).encode()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    return repr(value).encode()
