"""Kaldi's log-mel filter banks, equal to those of transformers' feature extractors that are made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxkit.errors import InputError
from onnxkit.tasks.audio import whole_numbers
from onnxkit.tasks.base import Array

_FRAME, _HOP, _FFT = 400, 160, 512
"""Samples, whatever the sampling rate: 25 and 10 ms at 16 kHz."""
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20.0
_FLOOR = 1.192092955078125e-07
_BLOCK_FRAMES = 3_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterBanks:
    """Settings of preprocessor_config.json; names and defaults are transformers'.

    Attributes:
        num_mel_bins: energies of a frame.
        sampling_rate: samples a second.
        means, variances: whether each energy has the mean 0 and the variance 1 over a recording.
        ddof, epsilon: of the variance: what is taken from the count, and added.
        stride: frames that are joined to one; a last one that is not full is masked.
        full_scale: what a sample of 1.0 stands for: Kaldi takes samples for 16-bit integers.
        window_power: of Hann's window; 0.85 makes Povey's of it.
    """

    name: ClassVar[str] = "input_features"
    padding_value: ClassVar[float] = 0.0
    seconds: ClassVar[None] = None

    num_mel_bins: int = 80
    sampling_rate: int = 16_000
    means: bool = True
    variances: bool = True
    ddof: int = 0
    epsilon: float = 0.0
    stride: int = 1
    full_scale: float = 2.0**15
    window_power: float = 0.85

    @classmethod
    def speech2text(cls, settings: Mapping[str, Any], path: Path) -> FilterBanks:
        """Take what the settings of a Speech2TextFeatureExtractor, the content of `path`, say."""
        normalized = bool(settings.get("do_ceptral_normalize", True))
        return cls(
            **whole_numbers(settings, path, ("num_mel_bins", "sampling_rate")),
            means=normalized and bool(settings.get("normalize_means", True)),
            variances=normalized and bool(settings.get("normalize_vars", True)),
        )

    @classmethod
    def seamless(cls, settings: Mapping[str, Any], path: Path) -> FilterBanks:
        """Take what the settings of a SeamlessM4TFeatureExtractor, the content of `path`, say."""
        given = {"stride": 2, **settings}
        counts = whole_numbers(given, path, ("num_mel_bins", "sampling_rate", "stride"))
        return cls(**counts, ddof=1, epsilon=1e-7)

    @property
    def hop(self) -> int:
        """Samples from one row of features to the next."""
        return _HOP * self.stride

    def length(self, samples: int) -> int:
        """Return how many rows of features a recording has, the masked one included."""
        return -(-self._frames(samples) // self.stride)

    def samples(self, frames: int) -> int:
        """Return how many samples so many frames (before they are joined) are made of."""
        return _FRAME + (frames - 1) * _HOP

    def __call__(self, samples: Array) -> tuple[Array, Array]:
        """Return float32 [length, num_mel_bins * stride], and which of them are no padding, int64 [length].

        A frame loses its mean, is pre-emphasized and weighed by a window; the logarithms of its power
        in triangles on the mel scale are its energies (Kaldi's `compute-fbank-feats`).

        Raises:
            InputError: fewer samples than a frame has.
        """
        count = self._frames(len(samples))
        if count < 1:
            raise InputError(f"{len(samples)} samples are too short for a frame of {_FRAME}")
        frames = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[::_HOP]
        energies = np.empty((count, self.num_mel_bins), np.float32)
        for start in range(0, count, _BLOCK_FRAMES):
            energies[start : start + _BLOCK_FRAMES] = self._energies(frames[start : start + _BLOCK_FRAMES])
        energies = self._normalized(energies)
        missing = -count % self.stride
        energies = np.pad(energies, ((0, missing), (0, 0)))
        real = np.ones(len(energies) // self.stride, np.int64)
        real[len(real) - bool(missing) :] = 0
        return energies.reshape(len(real), -1), real

    def _frames(self, samples: int) -> int:
        return max(0, (samples - _FRAME) // _HOP + 1)

    def _energies(self, frames: Array) -> Array:
        """Return [n, num_mel_bins] of [n, 400]."""
        scaled = frames.astype(np.float64) * self.full_scale
        scaled -= scaled.mean(axis=1, keepdims=True)
        before = np.concatenate([scaled[:, :1], scaled[:, :-1]], axis=1)
        spectrum = np.fft.rfft((scaled - _PREEMPHASIS * before) * self._window, n=_FFT)
        power = np.abs(spectrum.astype(np.complex64)).astype(np.float64) ** 2
        return np.log(np.maximum(power @ self._filters.T, _FLOOR)).astype(np.float32)

    def _normalized(self, energies: Array) -> Array:
        if self.means:
            energies = energies - energies.mean(axis=0)
        if not self.variances:
            return energies
        variance = energies.var(axis=0, ddof=min(self.ddof, len(energies) - 1))
        deviation = np.sqrt(variance + self.epsilon)
        return energies / np.where(deviation > 0, deviation, 1.0)

    @cached_property
    def _window(self) -> Array:
        window: Array = np.hanning(_FRAME) ** self.window_power
        return window

    @cached_property
    def _filters(self) -> Array:
        """Triangles [num_mel_bins, 257] that are evenly spaced, and straight, on the mel scale."""
        corners = np.linspace(_mel(_LOWEST_HZ), _mel(self.sampling_rate // 2), self.num_mel_bins + 2)
        bins = _mel(self.sampling_rate / _FFT * np.arange(_FFT // 2 + 1))
        low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
        triangles: Array = np.maximum(0.0, np.minimum(rising, falling))
        return triangles


def _mel(hertz: Any) -> Any:
    return 1127.0 * np.log1p(hertz / 700.0)
