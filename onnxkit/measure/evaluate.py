"""The task's own metric of a model on labelled samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onnxkit.inputs import Sample
from onnxkit.inputs.sample import Located

if TYPE_CHECKING:
    from onnxkit.predictor import Predictor
    from onnxkit.tasks import Metric

# A metric looks at labels and texts; media are dropped once predicted, so that memory stays flat.
_MEDIA = frozenset({"image", "audio"})


def evaluate(predictor: Predictor, samples: Iterable[Sample]) -> Metric | None:
    """Predict every sample, in a stream, and compute the task's metric.

    Returns:
        None where the samples hold no labels, or the task has no metric.
    """
    truth: list[Sample] = []

    def remembered() -> Iterator[Sample]:
        for sample in samples:
            truth.append(_without_media(sample))
            yield sample

    records = list(predictor.stream(remembered()))
    return predictor.task.metric(records, truth)


def _without_media(sample: Sample) -> Sample:
    if _MEDIA.isdisjoint(sample):
        return sample
    kept = {name: value for name, value in sample.items() if name not in _MEDIA}
    return Located(kept, sample.where) if isinstance(sample, Located) else kept
