"""Image classification: a label for an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxkit.tasks.classify import Classification, Classifier
from onnxkit.tasks.image import ImageTask

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class ImageClassification(Classification, ImageTask):
    """Records: `label`, `score`, `scores` (the `top_k` best labels); `labels` for multi-label models."""

    name = "image-classification"

    def __init__(self, model: ModelDir, *, top_k: int = 5, activation: str | None = None) -> None:
        super().__init__(model)
        self.classifier = Classifier(model.config, top_k=top_k, activation=activation)
