"""Speech recognition with whisper: windows of 30 s, each continued where the last one's timestamps end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.audio import audio_sample, preprocessor_kind, read_preprocessor, recording
from onnxkit.tasks.base import Array, Encoded, Feeds, Metric, Record, Task
from onnxkit.tasks.ctc import Ctc
from onnxkit.tasks.detokenizer import TextStream
from onnxkit.tasks.extractors import EXTRACTORS
from onnxkit.tasks.generating import Generated, GeneratingTask, Prompt, ids_array
from onnxkit.tasks.transcription import Transcription
from onnxkit.tasks.whisper_features import LogMel
from onnxkit.tasks.whisper_rules import TimestampRules, WhisperRule
from onnxkit.tasks.whisper_segments import Clock, Segment, compression_ratio, split
from onnxkit.tasks.whisper_stream import SegmentStream
from onnxkit.tasks.whisper_tokens import load_tokens
from onnxkit.tasks.word_errors import transcript_metric

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recording:
    """A sample's features [mels, all frames], and how many of the frames are sound."""

    features: Array
    frames: int
    duration_s: float
    timed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """Where a row reads: its first frame, the language's id once it is known, how often it was tried."""

    recording: _Recording
    seek: int = 0
    language: int | None = None
    attempt: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a window gave: its segments, how far the next one is, or that it is tried again."""

    window: _Window
    segments: tuple[Segment, ...]
    advance: int
    language: int | None
    again: bool


class Whisper(GeneratingTask):
    """Records: `text`, `language` (a code), `duration_s`, `finish_reason`, `new_tokens`; with
    `timestamps` also `segments`: {"start_s", "end_s", "text"}.

    A recording of up to 30 s takes one window. A longer one, or one with `timestamps`, is read as
    OpenAI's `transcribe` and transformers' long-form generation do: a window is decoded with timestamps,
    and the next one starts where its last pair of timestamps stands (earlier text does not condition
    the next window). Unlike transformers, reading ends where the sound ends, not with the silence that
    a short recording is padded with.

    Args:
        model: encoder and decoder, generation_config.json, preprocessor_config.json, tokenizer.
        language: name or code; None takes the model's own, else detects it from the first window.
        timestamps: give segments.
        translate: into English.
        temperatures: what to sample a window with, one after the other, that failed the thresholds of
            generation_config.json (`compression_ratio_threshold`, `logprob_threshold`); none by default.
    """

    name = "automatic-speech-recognition"
    noun = "recordings"
    columns = ("audio",)
    window = 8

    def __init__(
        self,
        model: ModelDir,
        *,
        language: str | None = None,
        timestamps: bool = False,
        translate: bool = False,
        temperatures: Sequence[float] = (),
    ) -> None:
        super().__init__(model)
        settings, path = read_preprocessor(model, ("WhisperFeatureExtractor",))
        self.log_mel = LogMel.parse(settings, path)
        self._check_shape()
        self.tokens = load_tokens(model, self.setup.tokenizer)
        self._language = self.tokens.language_id(language)
        self._task = self.tokens.task_id(translate=translate)
        self._timestamps = timestamps
        self._temperatures = tuple(temperatures)
        if timestamps and self.tokens.no_timestamps is None:
            raise UsageError("this model has no timestamps: it has no token <|notimestamps|>")
        positions = int(model.config.get("max_source_positions") or self.log_mel.frames // 2)
        self._clock = Clock(
            begin=self._first_timestamp(),
            step_s=self.log_mel.chunk_length / positions,
            stride=self.log_mel.frames // positions,
        )
        # transformers counts generation_config.json's length beyond the prefix, but never past the positions.
        limit = int(model.config.get("max_target_positions") or self.tokens.max_length)
        prefix = 1 + len(self._prefix(self._timestamps))
        self.generation = {"max_length": min(self.tokens.max_length + prefix, limit)}
        decode = self._decode
        self._decode = lambda ids: decode([one for one in ids if one < self._clock.begin])

    @classmethod
    def for_model(cls, model: ModelDir) -> type[Task]:
        """Return `Ctc` for a model of one graph, which gives a token a frame; `Transcription` for an encoder
        that reads recordings of any length."""
        if "encoder" not in model.components:
            return Ctc
        return Transcription if preprocessor_kind(model) in EXTRACTORS else cls

    def encode(self, sample: Sample) -> Encoded:
        """Read a recording and make the row of its first window: `input_features` float [mels, frames]."""
        read = recording(sample, self.log_mel.sampling_rate)
        samples = read.samples
        long = len(samples) > self.log_mel.samples
        if long and self.tokens.no_timestamps is None:
            raise InputError(
                f"{place(sample)}: longer than the {self.log_mel.chunk_length} s that a model without "
                "timestamps reads; split it"
            )
        heard = _Recording(
            features=self.log_mel(samples),
            frames=max(self.log_mel.content_frames(samples), 1),
            duration_s=len(samples) / self.log_mel.sampling_rate,
            timed=long or self._timestamps,
        )
        row = self._row(_Window(recording=heard, language=self._language), place(sample))
        return dataclasses.replace(row, caution=read.caution)

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Stack windows: they are of one length."""
        dtype = self.inputs["input_features"].dtype
        return {"input_features": np.stack([row.features["input_features"] for row in rows]).astype(dtype)}

    def sample_of(self, item: Any) -> Sample:
        """Take a path, an array, a pair (array, rate) or a mapping with `array` as the audio."""
        return audio_sample(item)

    def stream(self, row: Encoded) -> TextStream:
        """Return what turns a window's tokens into text as they come: whole segments where they are timed."""
        if row.extra.sample.recording.timed:
            return SegmentStream(self._decode, self._clock.begin)
        return super().stream(row)

    def next_row(self, row: Encoded, record: Record) -> Encoded | None:
        """Return the row of the next window, or the same one at a higher temperature; None at the end."""
        outcome: _Outcome = record["window"]
        window = dataclasses.replace(outcome.window, language=outcome.language)
        if outcome.again:
            return self._row(dataclasses.replace(window, attempt=window.attempt + 1), row.where)
        seek = window.seek + outcome.advance
        if seek >= window.recording.frames:
            return None
        return self._row(dataclasses.replace(window, seek=seek, attempt=0), row.where)

    def decode_completion(self, sequences: Sequence[Generated], row: Encoded, prompt_tokens: int) -> Record:
        """Make the record of a window."""
        if len(sequences) != 1:
            raise UsageError("a recording has one transcript: several sequences do not apply")
        return self.describe(sequences[0], row)

    def describe(self, sequence: Generated, row: Encoded) -> Record:
        """Cut a window's tokens into segments, and judge whether they can stay."""
        window: _Window = row.extra.sample
        rule: WhisperRule = row.extra.rule
        prefix, said = sequence.tokens[: len(rule.prefix)], sequence.tokens[len(rule.prefix) :]
        language = (
            prefix[0] if prefix and window.language is None and self.tokens.languages else window.language
        )
        left = window.recording.frames - window.seek
        frames = min(left, self.log_mel.frames)
        silent, failed = self._judged(sequence, said, rule)
        again = failed and not silent and window.attempt < len(self._temperatures)
        segments: list[Segment] = []
        advance = frames
        if not silent and said:
            segments, advance = split(said, self._clock, seek=window.seek, frames=frames)
        if not window.recording.timed:
            advance = left
        elif advance <= 0:  # sampled, or of a model that breaks the rules: it must not read for ever
            advance = frames
        outcome = _Outcome(
            window=window, segments=tuple(segments), advance=advance, language=language, again=again
        )
        return {
            "window": outcome,
            "finish_reason": sequence.finish_reason,
            "new_tokens": len(sequence.tokens),
        }

    def merge(self, records: Sequence[Record]) -> Record:
        """Join the windows of a recording."""
        outcomes: list[_Outcome] = [record["window"] for record in records]
        kept = [segment for one in outcomes if not one.again for segment in one.segments]
        duration = outcomes[0].window.recording.duration_s
        merged: Record = {
            "text": self.text_of([token for segment in kept for token in segment.tokens]).strip(),
            "language": self._code(outcomes[-1].language),
            "duration_s": duration,
        }
        if self._timestamps:
            merged["segments"] = [one for one in (self._timed(seg, duration) for seg in kept) if one["text"]]
        reasons = {
            record["finish_reason"] for record, one in zip(records, outcomes, strict=True) if not one.again
        }
        merged["finish_reason"] = "length" if "length" in reasons else "stop"
        merged["new_tokens"] = sum(record["new_tokens"] for record in records)
        return merged

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Word error rate of the samples that have a `target`."""
        return transcript_metric(records, samples)

    def _row(self, window: _Window, where: str) -> Encoded:
        size = self.log_mel.frames
        piece = window.recording.features[:, window.seek : window.seek + size]
        piece = np.pad(piece, ((0, 0), (0, size - piece.shape[1])))
        prefix = self._prefix(window.recording.timed, window.language)
        # Where the probability of no speech is read, and a language that is not known is decoded.
        decoded = any(len(choices) > 1 for choices in prefix) or self.tokens.no_speech_threshold is not None
        ids = [self.tokens.start] if decoded else [self.tokens.start, *(one[0] for one in prefix)]
        prompt = Prompt(
            ids=ids_array(ids),
            options={"suppress_tokens": (), "begin_suppress_tokens": (), **self._sampling(window.attempt)},
            sample=window,
            log_probabilities=self.tokens.logprob_threshold is not None,
            rule=self._rule(window, prefix if decoded else ()),
        )
        return Encoded(features={"input_features": piece}, length=size, extra=prompt, where=where)

    def _prefix(self, timed: bool, language: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Return the choices for each token of the decoder's prefix after the first."""
        tokens = self.tokens
        languages = (language,) if language is not None else tuple(sorted(tokens.languages.values()))
        parts = [languages, () if self._task is None else (self._task,)]
        if not timed and tokens.no_timestamps is not None:
            parts.append((tokens.no_timestamps,))
        return tuple(part for part in parts if part)

    def _rule(self, window: _Window, prefix: tuple[tuple[int, ...], ...]) -> WhisperRule:
        tokens = self.tokens
        timestamps = TimestampRules(
            begin=self._clock.begin, eos=tokens.eos, max_initial=tokens.max_initial_timestamp
        )
        asked = tokens.no_speech_threshold is not None and tokens.no_timestamps is not None
        return WhisperRule(
            prefix=prefix,
            suppress=tokens.suppress,
            begin_suppress=tokens.begin_suppress,
            timestamps=timestamps if window.recording.timed else None,
            no_speech_token=tokens.no_timestamps - 1 if asked and tokens.no_timestamps else None,
        )

    def _sampling(self, attempt: int) -> Mapping[str, Any]:
        if attempt == 0:
            return {}
        return {"do_sample": True, "temperature": self._temperatures[attempt - 1], "num_beams": 1}

    def _judged(self, sequence: Generated, said: Sequence[int], rule: WhisperRule) -> tuple[bool, bool]:
        """Return whether a window is silent, and whether its tokens failed a threshold."""
        tokens = self.tokens
        count = len(said) + (sequence.finish_reason == "stop")
        mean = sequence.score / max(count, 1) if sequence.score is not None else 0.0
        unlikely = tokens.logprob_threshold is not None and mean < tokens.logprob_threshold
        quiet = (
            tokens.no_speech_threshold is not None and (rule.no_speech or 0.0) > tokens.no_speech_threshold
        )
        ratio = compression_ratio(said, int(self.model.config.get("vocab_size") or 51_865))
        limit = tokens.compression_ratio_threshold
        return unlikely and quiet, unlikely or (limit is not None and ratio > limit)

    def _timed(self, segment: Segment, duration: float) -> Record:
        return {
            "start_s": round(min(segment.start_s, duration), 3),
            "end_s": round(min(segment.end_s, duration), 3),
            "text": self.text_of(segment.tokens).strip(),
        }

    def _code(self, language: int | None) -> str:
        return next((code for code, value in self.tokens.languages.items() if value == language), "en")

    def _first_timestamp(self) -> int:
        """Return the id of `<|0.00|>`; one past every id where there are no timestamps."""
        if self.tokens.no_timestamps is not None:
            return self.tokens.no_timestamps + 1
        return int(self.model.config.get("vocab_size") or 0) + (1 << 20)

    def _check_shape(self) -> None:
        """Refuse a preprocessor that makes other features than the model takes."""
        spec = self.inputs.get("input_features")
        made = (self.log_mel.feature_size, self.log_mel.frames)
        if spec is None or len(spec.shape) != 3:
            raise InputError(f"{self.model.path}: the encoder has no input_features [batch, mels, frames]")
        wanted = zip(spec.shape[1:], made, strict=True)
        if any(isinstance(size, int) and size != other for size, other in wanted):
            raise InputError(
                f"{self.model.path}: preprocessor_config.json makes {made[0]} mel bands in {made[1]} frames, "
                f"the model takes {spec.shape[1]} in {spec.shape[2]}"
            )
