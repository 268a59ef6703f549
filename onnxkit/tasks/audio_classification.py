"""Audio classification: a label for a recording (a command, a language, a speaker's mood, a sound)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from onnxkit.inputs import Sample
from onnxkit.tasks.audio_encoder import AudioEncoderTask
from onnxkit.tasks.base import Array, Encoded, Metric, Record
from onnxkit.tasks.classify import Classifier
from onnxkit.tasks.extractors import EXTRACTORS, WINDOWS, Parse

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class AudioClassification(AudioEncoderTask):
    """Records: `label`, `score`, `scores` (the `top_k` best labels); `labels` for multi-label models."""

    name = "audio-classification"
    extractors: ClassVar[Mapping[str, Parse]] = {**EXTRACTORS, **WINDOWS}

    def __init__(self, model: ModelDir, *, top_k: int = 5, activation: str | None = None) -> None:
        super().__init__(model)
        self._classifier = Classifier(model.config, top_k=top_k, activation=activation)

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn logits [rows, labels] into records."""
        return self._classifier.records(outputs[self.fetched[0]])

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Accuracy; F1 for multi-label models."""
        return self._classifier.metric(records, samples)
