"""The task's own metric of a model on samples."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxkit.inputs import Sample
from onnxkit.inputs.sample import Located
from onnxkit.tasks.labels import expected

if TYPE_CHECKING:
    from onnxkit.predictor import Predictor
    from onnxkit.tasks import Metric, Task

# A metric looks at labels and texts; media are dropped once predicted, so that memory stays flat.
_MEDIA = frozenset({"image", "audio"})

# What divides samples into slices, and from how many on a slice's metric is more than noise.
SLICES = ("slice", "language", "label")
SMALLEST_SLICE = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A metric over all samples, and over each slice of `SMALLEST_SLICE` samples or more, by name."""

    metric: Metric | None
    slices: Mapping[str, Metric]


def evaluate(predictor: Predictor, samples: Iterable[Sample]) -> Metric | None:
    """Predict every sample, in a stream, and compute the task's metric.

    Texts for a model that continues texts are scored instead: the metric is their perplexity.

    Returns:
        None where the samples hold no labels, or the task has no metric.
    """
    return predictor.task.metric(*_predicted(predictor, samples))


def evaluate_slices(predictor: Predictor, samples: Iterable[Sample]) -> Evaluation:
    """As `evaluate`, and by slice: the column `slice`, else `language`, else each class of `label`."""
    records, truth = _predicted(predictor, samples)
    return Evaluation(
        metric=predictor.task.metric(records, truth), slices=_slices(predictor.task, records, truth)
    )


def _slices(task: Task, records: Sequence[Any], truth: Sequence[Sample]) -> dict[str, Metric]:
    column = next((name for name in SLICES if any(_name(row.get(name)) for row in truth)), None)
    members: dict[str, list[int]] = {}
    for number, row in enumerate(truth):
        name = _name(row.get(column)) if column is not None else ""
        if name:
            members.setdefault(name, []).append(number)
    found: dict[str, Metric] = {}
    for name, numbers in sorted(members.items()):
        metric = task.metric([records[i] for i in numbers], [truth[i] for i in numbers])
        if metric is not None and len(numbers) >= SMALLEST_SLICE:
            found[name] = metric
    return found


def _name(value: Any) -> str:
    """A slice's name: a text or a whole number; empty for what names no slice (a score, a list)."""
    return str(value) if isinstance(value, str | int) else ""


def _predicted(predictor: Predictor, samples: Iterable[Sample]) -> tuple[list[Any], list[Sample]]:
    """The records of all samples, and the samples without their media."""
    truth: list[Sample] = []

    def remembered() -> Iterator[Sample]:
        for sample in samples:
            truth.append(_without_media(sample))
            yield sample

    stream = iter(remembered())
    first = list(itertools.islice(stream, 1))
    scored = not predictor.task.needs_labels and not any(is_labelled(sample) for sample in first)
    every = itertools.chain(first, stream)
    records = list(predictor.score(every) if scored else predictor.stream(every))
    return records, truth


def is_labelled(sample: Sample) -> bool:
    """Whether a sample says what is right, in one of the columns that metrics look at."""
    return expected(sample) is not None


def _without_media(sample: Sample) -> Sample:
    if _MEDIA.isdisjoint(sample):
        return sample
    kept = {name: value for name, value in sample.items() if name not in _MEDIA}
    return Located(kept, sample.where) if isinstance(sample, Located) else kept
