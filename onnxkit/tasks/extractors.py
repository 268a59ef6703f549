"""What a speech model is fed: the samples of a recording, or energies of its frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from onnxkit.artifact.configuration import shortest_waveform
from onnxkit.errors import InputError
from onnxkit.tasks.audio import read_preprocessor
from onnxkit.tasks.base import Array
from onnxkit.tasks.filter_banks import FilterBanks
from onnxkit.tasks.fixed_windows import Spectrogram, WhisperWindow

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class Extractor(Protocol):
    """Turns a recording into a model's input.

    Attributes:
        name: of the input.
    """

    name: ClassVar[str]

    @property
    def seconds(self) -> float | None:
        """What every recording is cut or padded to; None: rows are as long as what they are made of."""

    @property
    def padding_value(self) -> float:
        """What stands behind a shorter recording."""

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""

    @property
    def hop(self) -> int:
        """Samples from one row to the next."""

    def length(self, samples: int) -> int:
        """Return how many rows a recording of so many samples has."""

    def __call__(self, samples: Array) -> tuple[Array, Array]:
        """Return the rows of float32 [samples], float32 [length, …], and which are real, int64 [length].

        Raises:
            InputError: too short a recording.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waveform:
    """Samples as they are, or with mean 0 and variance 1 over a recording (Wav2Vec2FeatureExtractor)."""

    name: ClassVar[str] = "input_values"
    hop: ClassVar[int] = 1
    seconds: ClassVar[None] = None

    sampling_rate: int = 16_000
    normalize: bool = True
    padding_value: float = 0.0

    @classmethod
    def parse(cls, settings: Mapping[str, Any], path: Path) -> Waveform:
        """Take what `settings`, the content of `path`, say."""
        rate = settings.get("sampling_rate", 16_000)
        if not isinstance(rate, int) or not 1_000 <= rate <= 768_000:
            raise InputError(f"{path}: sampling_rate must be samples a second, not {rate!r}")
        return cls(
            sampling_rate=rate,
            normalize=bool(settings.get("do_normalize", True)),
            padding_value=float(settings.get("padding_value") or 0.0),
        )

    def length(self, samples: int) -> int:
        """Every sample is a row."""
        return samples

    def __call__(self, samples: Array) -> tuple[Array, Array]:
        """Return float32 [samples], all of them real."""
        if self.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return samples.astype(np.float32, copy=False), np.ones(len(samples), np.int64)


Parse = Callable[[Mapping[str, Any], Path], Extractor]
"""Makes one of the settings in preprocessor_config.json, which stands at a path."""

EXTRACTORS: Mapping[str, Parse] = {
    "Wav2Vec2FeatureExtractor": Waveform.parse,
    "Speech2TextFeatureExtractor": FilterBanks.speech2text,
    "SeamlessM4TFeatureExtractor": FilterBanks.seamless,
}
"""`feature_extractor_type` of preprocessor_config.json → what reads the rest of it; rows of any length."""

WINDOWS: Mapping[str, Parse] = {
    "ASTFeatureExtractor": Spectrogram.parse,
    "WhisperFeatureExtractor": WhisperWindow.parse,
}
"""The same, of rows that all have one length."""


def features(
    extractor: Extractor, samples: Array, config: Mapping[str, Any], where: str
) -> tuple[Array, Array]:
    """Return what an extractor makes of float32 [samples]: rows [length, …], and which are real [length].

    Raises:
        InputError: too few samples for a frame of the model whose config.json it is; begins with `where`.
    """
    if extractor.hop == 1 and len(samples) < shortest_waveform(config):
        raise InputError(f"{where}: {len(samples)} samples are too short for a frame of the model")
    try:
        return extractor(samples)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def padded_rows(rows: Sequence[Array], dtype: str, fill: float) -> Array:
    """Stack [length, …] arrays, the shorter ones with `fill` behind them."""
    width = max(map(len, rows))
    widths = [[(0, width - len(row)), *[(0, 0)] * (row.ndim - 1)] for row in rows]
    padded = [np.pad(row, each, constant_values=fill) for row, each in zip(rows, widths, strict=True)]
    return np.stack(padded).astype(dtype)


def extractor_of(model: ModelDir, known: Mapping[str, Parse] = EXTRACTORS) -> Extractor:
    """Return what makes the model's input, one of `known`.

    Raises:
        InputError: no preprocessor_config.json, or one of another kind.
    """
    settings, path = read_preprocessor(model, tuple(known))
    kind = str(settings.get("feature_extractor_type", next(iter(known))))
    return known[kind](settings, path)
