"""What a task is: from samples to a model's inputs, and from its outputs to records."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample, place

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.runtime import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
Side = Literal["right", "left"]
Feeds = dict[str, Array]
Record = dict[str, Any]
"""What a task says about one sample, in plain types (arrays only from the task `raw`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """One row of a batch before padding.

    Attributes:
        features: the model's inputs without batch axis: `input_ids` int64 [length], `pixel_values`
            [channels, height, width], …
        length: what padding goes by (tokens); rows of like length are batched together.
        extra: what `decode` needs beside the outputs.
        truncated: the sample was longer than the model takes, and was cut.
        caution: what is wrong with the sample, which is read all the same; told once.
        where: the place of the sample, for errors.
    """

    features: Mapping[str, Array]
    length: int
    extra: Any = None
    truncated: bool = False
    caution: str = ""
    where: str = "the sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """How well records agree with the samples' labels.

    Attributes:
        name: "accuracy", "exact_match", "spearman", …
        value: a share (0 to 1) or a correlation.
        higher_is_better: the direction.
        count: labelled samples that the value rests on.
        details: further metrics by name.
    """

    name: str
    value: float
    higher_is_better: bool = True
    count: int = 0
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Task(ABC):
    """A task on one model. Stateless once made: threads may share it.

    A sample becomes one row (`encode`) or several (`rows`: long contexts, pairs); a row's outputs
    become one record (`decode`), and the records of a sample's rows become its record (`merge`).

    Attributes:
        name: transformers' pipeline name.
        columns: the columns that a sample must have.
        outputs: groups of output names; the first name of each group that the model has is fetched.
        axes: how many the first of those outputs has; None: any number.
        window: how many samples are held in memory to sort them by length.
        batched: whether several rows may share a run.
        keeps_dtypes: whether `decode` takes outputs as the model gives them, not as float32.
        generates: whether its records come of tokens that an engine generates (a `GeneratingTask`).
        needs_labels: whether its metric needs to know what is right; else a text is judged by itself.
        noun: what its samples are called.
        kind: what sets its models apart from others of the task, where an option does not apply.
        limit: tokens that a text may have; longer ones are cut.
    """

    name: ClassVar[str]
    noun: ClassVar[str] = "texts"
    kind: ClassVar[str] = ""
    columns: tuple[str, ...]
    outputs: tuple[tuple[str, ...], ...]
    axes: ClassVar[int | None] = None
    window: ClassVar[int] = 1024
    batched: ClassVar[bool] = True
    keeps_dtypes: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    limit: int | None = None

    def __init__(self, model: ModelDir) -> None:
        self.model = model
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in model.inputs}
        self.fetched = self._choose_outputs({spec.name: spec for spec in model.outputs})

    @property
    def fixed_batch(self) -> int | None:
        """How many rows the graph insists on, None where it takes any number."""
        sizes = [spec.shape[0] for spec in self.inputs.values() if self.batched and spec.shape]
        return next((size for size in sizes if isinstance(size, int)), None)

    @property
    def longest(self) -> str:
        """How much of a sample is read, where longer ones are cut."""
        return f"{self.limit:,} tokens"

    @classmethod
    def for_model(cls, model: ModelDir) -> type[Task]:
        """Return the class that serves `model`: this one, unless several kinds of model have the task."""
        return cls

    @abstractmethod
    def encode(self, sample: Sample) -> Encoded:
        """Pre-process one sample into the (first) row that represents it.

        Raises:
            InputError: the sample lacks a column or holds what cannot be read; names its place.
        """

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Pre-process samples, each into one or more rows."""
        return [[self.encode(sample)] for sample in samples]

    @abstractmethod
    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Pad and stack rows into the model's inputs (batch first, dtypes of the model)."""

    @abstractmethod
    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn outputs (float32, batch first) into one record a row."""

    def merge(self, records: Sequence[Record]) -> Record:
        """Join the records of one sample's rows."""
        return records[0]

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Compare records with the samples' labels; None when no sample is labelled."""
        return None

    def sample_of(self, item: Any) -> Sample:
        """Turn what a Python caller passes (a mapping, or the task's bare value) into a sample."""
        if isinstance(item, Mapping):
            return item
        return {self.columns[0]: item}

    def _choose_outputs(self, available: Mapping[str, TensorSpec]) -> tuple[str, ...]:
        chosen: list[str] = []
        for group in self.outputs:
            found = next((name for name in group if name in available), None)
            if found is None:
                raise InputError(
                    f"{self.model.path}: {self.name} needs an output named {' or '.join(group)}, but the "
                    f"model has {', '.join(available)}; name its own task with --task"
                )
            chosen.append(found)
        shape = available[chosen[0]].shape if chosen else ()
        if shape and self.axes not in (None, len(shape)):  # a shape that nobody told is empty
            raise InputError(
                f"{self.model.path}: {self.name} needs {chosen[0]} of {self.axes} axes, but the model's have "
                f"{len(shape)}; name its own task with --task"
            )
        return tuple(chosen)

    def _check_inputs(self, supplied: Sequence[str]) -> None:
        """Refuse a model with an input that this task's samples cannot fill."""
        missing = [name for name in self.inputs if name not in supplied]
        if missing:
            raise InputError(
                f"{self.model.path}: {self.name} cannot supply the model's input {', '.join(missing)}; "
                "pass raw tensors (an .npz with every input) instead"
            )


def column_of(sample: Sample, column: str) -> Any:
    """Return what a sample has in a column; raises InputError that names its place where that is nothing."""
    value = sample.get(column)
    if value is None:
        if column in sample:
            raise InputError(f"{place(sample)}: its {column!r} is null; mend this sample or leave it out")
        have = ", ".join(map(str, sample)) or "none"
        raise InputError(
            f"{place(sample)}: there is no {column!r} (columns: {have}); "
            f"rename one with --column {column}=THEIRS"
        )
    return value


def check_count(option: str, value: int) -> None:
    """Raise UsageError unless an option's value is 1 or more."""
    if value < 1:
        raise UsageError(f"{option} must be 1 or more, not {value}")


def as_float32(array: Array) -> Array:
    """Return floating outputs as float32; other dtypes stay."""
    if array.dtype == np.float32 or array.dtype.kind in "iubSUO":
        return array
    return array.astype(np.float32)
