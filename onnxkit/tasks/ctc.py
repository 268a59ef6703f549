"""Speech recognition by CTC: one run over the waveform gives a token a frame (wav2vec2, hubert, wavlm, …)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from onnxkit.artifact.configuration import positive, waveform_convolutions
from onnxkit.errors import InputError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.audio import Recording, recording
from onnxkit.tasks.audio_encoder import AudioEncoderTask
from onnxkit.tasks.base import Array, Encoded, Metric, Record
from onnxkit.tasks.ctc_vocabulary import Word, load_vocabulary
from onnxkit.tasks.word_errors import transcript_metric

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

_CHUNK_S = 30.0
_STRIDE_S = _CHUNK_S / 6
_PAUSE_S = 0.5
_SEGMENT_S = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A row's part of a recording: its samples, how many of them at either side its neighbours read, too."""

    samples: int
    left: int
    right: int
    duration_s: float


class Ctc(AudioEncoderTask):
    """Records: `text`, `duration_s`; with `timestamps` also `segments`: {"start_s", "end_s", "text"}.

    The best token of each frame is taken. Recordings over 30 s are read in chunks of 30 s that overlap
    by 10 s, and the 5 s at a chunk's inner ends are dropped: as transformers' pipeline does for
    `chunk_length_s=30`. A segment is a run of words without a pause of 0.5 s, of 6 s at most.
    """

    name = "automatic-speech-recognition"
    axes = 3
    kind = "a CTC model (it spells what it hears: no language tokens, no translation, no generation)"

    def __init__(self, model: ModelDir, *, timestamps: bool = False) -> None:
        super().__init__(model)
        self._rate = self.extractor.sampling_rate
        self.vocabulary = load_vocabulary(model.path)
        self._timestamps = timestamps
        self._convolutions = _convolutions(model, of_samples=self.extractor.hop == 1)
        self._ratio: int = math.prod(stride for _, stride in self._convolutions) * self.extractor.hop

    def encode(self, sample: Sample) -> Encoded:
        """Read a recording and make the row of its first chunk."""
        return self.rows([sample])[0][0]

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Read recordings: one row a chunk."""
        return [list(self._chunks(recording(one, self._rate), place(one))) for one in samples]

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn logits [rows, frames, tokens] into the ids of each row's own frames."""
        best = outputs[self.fetched[0]].argmax(axis=-1)
        return [{"ids": self._own(ids, row.extra), "duration_s": row.extra.duration_s}
                for ids, row in zip(best, rows, strict=True)]  # fmt: skip

    def merge(self, records: Sequence[Record]) -> Record:
        """Join the chunks of a recording."""
        ids = [one for record in records for one in record["ids"]]
        merged = {"text": self.vocabulary.text(ids), "duration_s": records[0]["duration_s"]}
        if self._timestamps:
            merged["segments"] = self._segments(self.vocabulary.words(ids))
        return merged

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Word error rate of the samples that have a `target`."""
        return transcript_metric(records, samples)

    def _chunks(self, read: Recording, where: str) -> Iterator[Encoded]:
        samples = read.samples
        size = self._aligned(_CHUNK_S)
        stride = self._aligned(_STRIDE_S)
        duration = len(samples) / self._rate
        if len(samples) <= size:
            row = self._row(samples, where, left=0, right=0, duration=duration)
            yield dataclasses.replace(row, caution=read.caution)
            return
        for start in range(0, len(samples), size - 2 * stride):
            end = start + size
            left, right = (stride if start else 0), (stride if end < len(samples) else 0)
            row = self._row(samples[start:end], where, left=left, right=right, duration=duration)
            yield dataclasses.replace(row, caution=read.caution)
            if right == 0:
                return

    def _row(self, samples: Array, where: str, *, left: int, right: int, duration: float) -> Encoded:
        chunk = _Chunk(samples=len(samples), left=left, right=right, duration_s=duration)
        return self.row(samples, where, extra=chunk)

    def _own(self, ids: Array, chunk: _Chunk) -> list[int]:
        """Cut padding and overlap off a row's frames."""
        own = ids[: self._frames(chunk.samples)]
        total = round(chunk.samples / self._ratio)
        left, right = (round(side / chunk.samples * total) for side in (chunk.left, chunk.right))
        kept: list[int] = own[left : total - right if right else None].tolist()
        return kept

    def _segments(self, words: Sequence[Word]) -> list[Record]:
        seconds = self._ratio / self._rate
        segments: list[Record] = []
        for word, first, last in words:
            start, end = first * seconds, last * seconds
            current = segments[-1] if segments else None
            if current and start - current["end_s"] < _PAUSE_S and end - current["start_s"] <= _SEGMENT_S:
                current.update(end_s=round(end, 3), text=f"{current['text']} {word}")
            else:
                segments.append({"start_s": round(start, 3), "end_s": round(end, 3), "text": word})
        return segments

    def _aligned(self, seconds: float) -> int:
        """Return `seconds` as samples, a whole number of frames."""
        return round(seconds * self._rate / self._ratio) * self._ratio

    def _frames(self, samples: int) -> int:
        """Return how many frames the model makes of so many samples."""
        samples = self.extractor.length(samples)
        for kernel, stride in self._convolutions:
            samples = (samples - kernel) // stride + 1
        return samples


def _convolutions(model: ModelDir, *, of_samples: bool) -> tuple[tuple[int, int], ...]:
    """Return kernel and stride of the feature encoder's convolutions, if it has some, and of an adapter's."""
    config = model.config
    found = waveform_convolutions(config) if of_samples else ()
    if of_samples and not found:
        raise InputError(
            f"{model.path}: config.json does not say how many samples make a frame "
            "(conv_kernel and conv_stride, lists of one length)"
        )
    if config.get("add_adapter"):
        layers = positive(config, "num_adapter_layers") or 3
        found += ((1, positive(config, "adapter_stride") or 2),) * layers
    return found
