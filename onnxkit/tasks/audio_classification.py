"""Audio classification: a label for a recording (a command, a language, a speaker's mood, a sound)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from onnxkit.tasks.audio_encoder import AudioEncoderTask
from onnxkit.tasks.classify import Classification, Classifier
from onnxkit.tasks.extractors import EXTRACTORS, WINDOWS, Parse

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class AudioClassification(Classification, AudioEncoderTask):
    """Records: `label`, `score`, `scores` (the `top_k` best labels); `labels` for multi-label models."""

    name = "audio-classification"
    extractors: ClassVar[Mapping[str, Parse]] = {**EXTRACTORS, **WINDOWS}

    def __init__(self, model: ModelDir, *, top_k: int = 5, activation: str | None = None) -> None:
        super().__init__(model)
        self.classifier = Classifier(model.config, top_k=top_k, activation=activation)
