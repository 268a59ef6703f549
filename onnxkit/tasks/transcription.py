"""Speech to text by an encoder and a decoder that read a recording whole: Moonshine, Speech2Text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.audio import audio_sample, recording
from onnxkit.tasks.base import Encoded, Feeds, Metric, Record
from onnxkit.tasks.extractors import extractor_of, features, padded_rows
from onnxkit.tasks.generating import Generated, GeneratingTask, Prompt, ids_array
from onnxkit.tasks.text2text_generation import decoder_start
from onnxkit.tasks.word_errors import transcript_metric

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

_LONGEST_S = 64.0
"""Of a waveform: Moonshine's own limit (`assert_audio_size` of its package)."""
_LANGUAGE = re.compile(r"^<lang:(.+)>$")


class Transcription(GeneratingTask):
    """Records: `text`, `duration_s`, `finish_reason`, `new_tokens`, `score`.

    A recording is read whole: one that is longer than the model reads is refused.

    Args:
        model: encoder and decoder, preprocessor_config.json, tokenizer.
        stop, stop_token: as in every task that generates.
        language: that is written, by its code, where the model has tokens for it.
    """

    name = "automatic-speech-recognition"
    kind = "a model that reads a recording whole (no timestamps, no translation)"
    noun = "recordings"
    columns = ("audio",)
    window = 8

    def __init__(
        self,
        model: ModelDir,
        *,
        stop: Sequence[str] = (),
        stop_token: Sequence[str] = (),
        language: str | None = None,
    ) -> None:
        super().__init__(model, stop=stop, stop_token=stop_token)
        self.extractor = extractor_of(model)
        self._check_inputs((self.extractor.name, "attention_mask"))
        self._start = decoder_start(model)
        if language is not None:
            self.generation = {"forced_bos_token_id": self._language_id(language)}

    @property
    def fixed_batch(self) -> int | None:
        """1 without a mask: padding would be heard."""
        return super().fixed_batch if "attention_mask" in self.inputs else 1

    def encode(self, sample: Sample) -> Encoded:
        """Read a recording: the encoder's input, and its mask where it takes one.

        Raises:
            InputError: no sound, or more or less than the model reads.
        """
        read, where = recording(sample, self.extractor.sampling_rate), place(sample)
        duration = len(read.samples) / self.extractor.sampling_rate
        self._check_duration(duration, where)
        rows, real = features(self.extractor, read.samples, self.model.config, where)
        made = {self.extractor.name: rows, "attention_mask": real}
        return Encoded(
            features={name: array for name, array in made.items() if name in self.inputs},
            length=len(rows),
            extra=Prompt(ids=ids_array([self._start]), sample=duration),
            caution=read.caution,
            where=where,
        )

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Pad recordings with silence to the longest."""
        return {
            name: padded_rows([row.features[name] for row in rows], spec.dtype, 0.0)
            for name, spec in self.inputs.items()
        }

    def sample_of(self, item: Any) -> Sample:
        """Take a path, an array, a pair (array, rate) or a mapping with `array` as the audio."""
        return audio_sample(item)

    def decode_completion(self, sequences: Sequence[Generated], row: Encoded, prompt_tokens: int) -> Record:
        """Make the record of a recording, its length in the place of that of a prompt."""
        record = super().decode_completion(sequences, row, prompt_tokens)
        del record["prompt_tokens"]
        return {**record, "duration_s": row.extra.sample}

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Word error rate of the samples that have a `target`."""
        return transcript_metric(records, samples)

    def _check_duration(self, duration: float, where: str) -> None:
        positions = self.model.config.get("max_source_positions")
        longest = _LONGEST_S
        if isinstance(positions, int):
            shortened = 2 ** int(self.model.config.get("num_conv_layers") or 0)
            longest = positions * shortened * self.extractor.hop / self.extractor.sampling_rate
        if duration > longest:
            raise InputError(
                f"{where}: {duration:.1f} s are longer than the {longest:g} s that the model reads at once; "
                "split it"
            )

    def _language_id(self, language: str) -> int:
        found = (_LANGUAGE.match(token) for token in self.setup.tokenizer.get_vocab())
        known = sorted(match[1] for match in found if match)
        if language not in known:
            said = f"it writes {', '.join(known)}" if known else "it has no tokens for languages"
            raise UsageError(f"--language {language} does not apply: {said}")
        return int(self.setup.tokenizer.get_vocab()[f"<lang:{language}>"])
