"""Text classification: a label for a text or a pair; rerankers give a single score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxkit.tasks.classify import Classification, Classifier
from onnxkit.tasks.text import TextTask

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class TextClassification(Classification, TextTask):
    """Records: `label`, `score`, `scores` (the `top_k` best labels); `labels` for multi-label models.

    Scores are softmax over the labels; sigmoid for multi-label models and for a single label
    (rerankers); the raw value for regression: as transformers' pipeline chooses. `activation`
    overrules it.
    """

    name = "text-classification"

    def __init__(
        self,
        model: ModelDir,
        *,
        max_length: int | None = None,
        top_k: int = 5,
        activation: str | None = None,
    ) -> None:
        super().__init__(model, max_length=max_length)
        self.classifier = Classifier(model.config, top_k=top_k, activation=activation)
