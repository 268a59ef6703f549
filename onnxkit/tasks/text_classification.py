"""Text classification: a label for a text or a pair; rerankers give a single score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxkit.inputs import Sample
from onnxkit.tasks.base import Array, Encoded, Metric, Record
from onnxkit.tasks.classify import Classifier
from onnxkit.tasks.text import TextTask

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class TextClassification(TextTask):
    """Records: `label`, `score`, `scores` (the `top_k` best labels); `labels` for multi-label models.

    Scores are softmax over the labels; sigmoid for multi-label models and for a single label
    (rerankers); the raw value for regression: as transformers' pipeline chooses. `activation`
    overrules it.
    """

    name = "text-classification"
    outputs = (("logits",),)

    def __init__(
        self,
        model: ModelDir,
        *,
        max_length: int | None = None,
        top_k: int = 5,
        activation: str | None = None,
    ) -> None:
        super().__init__(model, max_length=max_length)
        self._classifier = Classifier(model.config, top_k=top_k, activation=activation)

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn logits [rows, labels] into records."""
        return self._classifier.records(outputs[self.fetched[0]])

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Accuracy; F1 for multi-label; Spearman's rho for a single score."""
        return self._classifier.metric(records, samples)
