"""The task's own metric of a model on samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onnxkit.inputs import Sample
from onnxkit.inputs.sample import Located

if TYPE_CHECKING:
    from onnxkit.predictor import Predictor
    from onnxkit.tasks import Metric

# A metric looks at labels and texts; media are dropped once predicted, so that memory stays flat.
_TRUTH = ("label", "labels", "target", "score", "answers", "answer", "entities")
_MEDIA = frozenset({"image", "audio"})


def evaluate(predictor: Predictor, samples: Iterable[Sample]) -> Metric | None:
    """Predict every sample, in a stream, and compute the task's metric.

    Texts for a model that continues texts are scored instead: the metric is their perplexity.

    Returns:
        None where the samples hold no labels, or the task has no metric.
    """
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
    return predictor.task.metric(records, truth)


def is_labelled(sample: Sample) -> bool:
    """Whether a sample says what is right, in one of the columns that metrics look at."""
    return any(sample.get(column) is not None for column in _TRUTH)


def _without_media(sample: Sample) -> Sample:
    if _MEDIA.isdisjoint(sample):
        return sample
    kept = {name: value for name, value in sample.items() if name not in _MEDIA}
    return Located(kept, sample.where) if isinstance(sample, Located) else kept
