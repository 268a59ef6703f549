"""Spectrograms of one length: what is shorter is padded, what is longer is cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxkit.errors import InputError
from onnxkit.tasks.audio import whole_numbers
from onnxkit.tasks.base import Array
from onnxkit.tasks.filter_banks import FilterBanks
from onnxkit.tasks.whisper_features import LogMel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """ASTFeatureExtractor: filter banks under Hann's window of samples as they are, in `max_length` frames.

    Attributes:
        banks: of a frame.
        max_length: frames; missing ones are 0 before they are normalized.
        mean, std: (x - mean) / (2 std) is what the model reads.
    """

    name: ClassVar[str] = "input_values"
    padding_value: ClassVar[float] = 0.0

    banks: FilterBanks
    max_length: int = 1024
    mean: float = 0.0
    std: float = 0.5

    @classmethod
    def parse(cls, settings: Mapping[str, Any], path: Path) -> Spectrogram:
        """Take what `settings`, the content of `path`, say.

        Raises:
            InputError: a count that is no positive whole number, a mean or deviation that is no number.
        """
        given = {"num_mel_bins": 128, "max_length": 1024, **settings}
        counts = whole_numbers(given, path, ("num_mel_bins", "sampling_rate", "max_length"))
        length = counts.pop("max_length")
        banks = FilterBanks(**counts, means=False, variances=False, full_scale=1.0, window_power=1.0)
        if not settings.get("do_normalize", True):
            return cls(banks=banks, max_length=length)
        mean, std = settings.get("mean", -4.2677393), settings.get("std", 4.5689974)
        numbers = [each for each in (mean, std) if isinstance(each, int | float) and math.isfinite(each)]
        if len(numbers) < 2 or std <= 0:
            raise InputError(f"{path}: mean {mean!r} and std {std!r} must be numbers, and std above 0")
        return cls(banks=banks, max_length=length, mean=float(mean), std=float(std))

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return self.banks.sampling_rate

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.banks.hop

    @property
    def seconds(self) -> float:
        """What every recording is cut or padded to."""
        return self.banks.samples(self.max_length) / self.sampling_rate

    def length(self, samples: int) -> int:
        """Every recording has as many frames."""
        return self.max_length

    def __call__(self, samples: Array) -> tuple[Array, Array]:
        """Return float32 [max_length, num_mel_bins] of float32 [samples], and int64 [max_length] of ones.

        Raises:
            InputError: fewer samples than a frame has.
        """
        energies, _ = self.banks(samples[: self.banks.samples(self.max_length)])
        energies = np.pad(energies, ((0, self.max_length - len(energies)), (0, 0)))
        scaled = (energies - self.mean) / (2.0 * self.std)
        return scaled.astype(np.float32, copy=False), np.ones(self.max_length, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperWindow:
    """WhisperFeatureExtractor for a model that does not generate: one window of 30 s."""

    name: ClassVar[str] = "input_features"
    padding_value: ClassVar[float] = 0.0

    log_mel: LogMel

    @classmethod
    def parse(cls, settings: Mapping[str, Any], path: Path) -> WhisperWindow:
        """Take what `settings`, the content of `path`, say; raises InputError as `LogMel.parse` does."""
        return cls(log_mel=LogMel.parse(settings, path))

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return self.log_mel.sampling_rate

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.log_mel.hop_length

    @property
    def seconds(self) -> float:
        """What every recording is cut or padded to."""
        return float(self.log_mel.chunk_length)

    def length(self, samples: int) -> int:
        """Every recording has as many frames."""
        return self.log_mel.frames

    def __call__(self, samples: Array) -> tuple[Array, Array]:
        """Return float32 [feature_size, frames] of float32 [samples], and int64 [frames] of ones."""
        heard = self.log_mel(samples[: self.log_mel.samples])
        return heard, np.ones(self.log_mel.frames, np.int64)
