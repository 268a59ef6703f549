"""What tasks on a model that only listens share: recordings become rows, and rows a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from onnxkit.inputs import Sample, place
from onnxkit.tasks.audio import audio_sample, recording
from onnxkit.tasks.base import Array, Encoded, Feeds, Task
from onnxkit.tasks.extractors import EXTRACTORS, Parse, extractor_of, features, padded_rows

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

_UNMASKED = frozenset({"wav2vec2-conformer", "data2vec-audio", "sew", "sew-d"})
"""Model types that, as adapters do, convolve or pool frames past a shorter row's end despite the mask."""


class AudioEncoderTask(Task):
    """A task on recordings: paths, or arrays of samples, in the column `audio`.

    Attributes:
        extractors: what may make the model's input, by `feature_extractor_type`.
        extractor: what does.
    """

    columns = ("audio",)
    noun = "recordings"
    extractors: ClassVar[Mapping[str, Parse]] = EXTRACTORS
    outputs: tuple[tuple[str, ...], ...] = (("logits",),)
    window = 32

    def __init__(self, model: ModelDir) -> None:
        super().__init__(model)
        self.extractor = extractor_of(model, self.extractors)
        self._check_inputs((self.extractor.name, "attention_mask"))

    @property
    def fixed_batch(self) -> int | None:
        """1 where padding would change what the model says: group normalization, or a mask that is not fed
        or not heeded."""
        if self.extractor.seconds is not None:
            return super().fixed_batch
        masked, config = "attention_mask" in self.inputs, self.model.config
        normed = config.get("feat_extract_norm", "layer") == "group"
        unmasked = config.get("add_adapter") or config.get("model_type") in _UNMASKED
        if not masked or normed or unmasked:
            return 1
        return super().fixed_batch

    @property
    def longest(self) -> str:
        """How much of a recording is read."""
        return f"{self.extractor.seconds:g} seconds"

    def encode(self, sample: Sample) -> Encoded:
        """Read a recording and make a row of it: what the model's extractor makes of it.

        Raises:
            InputError: a file or an array that holds no sound, or too short a recording; names its place.
        """
        read = recording(sample, self.extractor.sampling_rate)
        return dataclasses.replace(self.row(read.samples, place(sample)), caution=read.caution)

    def row(self, samples: Array, where: str, extra: Any = None) -> Encoded:
        """Make a row of float32 [samples] at the model's rate."""
        heard, real = features(self.extractor, samples, self.model.config, where)
        seconds = self.extractor.seconds
        return Encoded(
            features={self.extractor.name: heard, "attention_mask": real},
            length=len(heard),
            extra=extra,
            truncated=seconds is not None and len(samples) > seconds * self.extractor.sampling_rate,
            where=where,
        )

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Pad at the right to the longest, with a mask where the model takes one."""
        fill = {self.extractor.name: self.extractor.padding_value}
        return {
            name: padded_rows([row.features[name] for row in rows], spec.dtype, fill.get(name, 0.0))
            for name, spec in self.inputs.items()
        }

    def sample_of(self, item: Any) -> Sample:
        """Take a path, an array, a pair (array, rate) or a mapping with `array` as the audio."""
        return audio_sample(item)
