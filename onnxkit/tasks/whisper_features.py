"""Whisper's log-mel spectrogram, equal to transformers' WhisperFeatureExtractor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.tasks.audio import whole_numbers
from onnxkit.tasks.base import Array

_BLOCK_FRAMES = 3_000
_HIGHEST_HZ = 8_000.0
_FLOOR = 1e-10


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel:
    """The settings of preprocessor_config.json; names and defaults are transformers'.

    Attributes:
        feature_size: mel bands (80, or 128 since large-v3).
        sampling_rate: samples a second.
        n_fft: samples of a frame.
        hop_length: samples from frame to frame.
        chunk_length: seconds of the window that the model reads.
    """

    feature_size: int = 80
    sampling_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    chunk_length: int = 30

    @classmethod
    def parse(cls, settings: Mapping[str, Any], path: Path) -> LogMel:
        """Take what `settings`, the content of `path`, say.

        Raises:
            InputError: a value that is no positive whole number, or dither (random noise on the samples).
        """
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**whole_numbers(settings, path, names))

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return self.chunk_length * self.sampling_rate

    @property
    def frames(self) -> int:
        """Frames of a window: 3,000 of 10 ms."""
        return self.samples // self.hop_length

    def content_frames(self, samples: Array) -> int:
        """Return how many frames of a recording hold sound, not padding."""
        return len(samples) // self.hop_length

    def __call__(self, samples: Array) -> Array:
        """Return float32 [feature_size, frames] of float32 [samples].

        What is shorter than a window is padded with silence to one; what is longer stays whole.

        A frame is a Hann window of `n_fft` samples around its time (the ends are mirrored). Its power
        spectrum, through the mel filters, becomes log10(max(x, 1e-10)), and the whole is then
        clipped from below at its maximum - 8 and scaled by (x + 4) / 4 (Radford et al. 2022, section 2.2;
        OpenAI's `log_mel_spectrogram`).
        """
        if len(samples) < self.samples:
            samples = np.pad(samples, (0, self.samples - len(samples)))
        padded = np.pad(samples.astype(np.float32, copy=False), self.n_fft // 2, mode="reflect")
        count = self.content_frames(samples)
        log_mel = np.empty((self.feature_size, count), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop_length]
        for start in range(0, count, _BLOCK_FRAMES):  # an hour's spectrum at once would be gigabytes
            end = min(start + _BLOCK_FRAMES, count)
            spectrum = np.fft.rfft(frames[start:end] * self._window).astype(np.complex64)
            power = np.abs(spectrum).T ** 2
            log_mel[:, start:end] = np.log10(np.maximum(self._filters @ power, _FLOOR))
        np.maximum(log_mel, log_mel.max() - 8.0, out=log_mel)
        log_mel += 4.0
        log_mel /= 4.0
        return log_mel

    @cached_property
    def _window(self) -> Array:
        """The periodic Hann window, float64 [n_fft]: double precision costs little here."""
        window: Array = np.hanning(self.n_fft + 1)[:-1]
        return window

    @cached_property
    def _filters(self) -> Array:
        filters = mel_filters(self.feature_size, self.n_fft, self.sampling_rate)
        return np.ascontiguousarray(filters.astype(np.float32))


def mel_filters(bands: int, n_fft: int, sampling_rate: int) -> Array:
    """Return the triangular mel filters, float64 [bands, n_fft // 2 + 1], from 0 to 8,000 Hz.

    Slaney's scale and normalization (Auditory Toolbox, 1998), as librosa's and transformers' "slaney": the
    corners of the triangles are evenly spaced in mel, and each triangle has the area 1 in Hz.
    """
    corners = _hertz(np.linspace(0.0, _mel(_HIGHEST_HZ), bands + 2))
    bins = np.linspace(0.0, sampling_rate // 2, n_fft // 2 + 1)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangles: Array = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (high - low))


# Slaney's mel scale: linear below 1,000 Hz (15 mel, 200 Hz for 3 mel), above it 27 mel for a factor of 6.4.
def _mel(hertz: float) -> float:
    if hertz < 1000.0:
        return 3.0 * hertz / 200.0
    return float(15.0 + 27.0 * np.log(hertz / 1000.0) / np.log(6.4))


def _hertz(mel: Array) -> Array:
    above = 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0)
    hertz: Array = np.where(mel < 15.0, 200.0 * mel / 3.0, above)
    return hertz
