"""Log-mel features equal transformers': its numpy form exactly, torch's within its own rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.errors import InputError
from onnxkit.tasks.whisper_features import LogMel, mel_filters
from tests.speech import RATE, tone

transformers = pytest.importorskip("transformers")


def extractor(**changes):
    return transformers.WhisperFeatureExtractor(**changes)


def sine(seconds, hertz=440.0):
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
def test_mel_filters(bands):
    theirs = extractor(feature_size=bands).mel_filters.T
    np.testing.assert_allclose(mel_filters(bands, 400, RATE), theirs, atol=1e-15)


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("samples", [noise(5), sine(3), tone(2.5), noise(30), noise(31.3), np.zeros(800)],
                         ids=["noise", "sine", "speech-like", "30 s", "31.3 s", "silence"])  # fmt: skip
def test_features_equal_transformers(bands, samples):
    theirs = extractor(feature_size=bands)
    samples = samples.astype(np.float32)
    padded = np.pad(samples, (0, max(0, theirs.n_samples - len(samples))))
    exact = theirs._np_extract_fbank_features([padded], "cpu")[0]
    long = {"truncation": False, "padding": "longest"} if len(samples) > theirs.n_samples else {}
    torch_made = theirs(samples, sampling_rate=RATE, return_tensors="np", **long)["input_features"][0]
    found = LogMel(feature_size=bands)(samples)
    assert (found.dtype, found.shape) == (np.float32, torch_made.shape)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    # torch's transform is in single precision: on a pure sine it is 2.4e-5 off its own numpy form.
    own = np.abs(torch_made - exact).max()
    assert np.abs(found - torch_made).max() <= max(1e-5, own + 1e-6)


@pytest.mark.parametrize("changes", [
    {"n_fft": 512, "hop_length": 128}, {"chunk_length": 5, "sampling_rate": 8_000, "feature_size": 40},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_other_settings(changes):
    theirs, ours = extractor(**changes), LogMel.parse(changes, Path("p.json"))
    samples = noise(1.0)
    exact = theirs._np_extract_fbank_features([np.pad(samples, (0, theirs.n_samples - RATE))], "cpu")[0]
    assert ours.frames == theirs.nb_max_frames
    np.testing.assert_allclose(ours(samples), exact, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40_000), st.integers(0, 2**32 - 1))
def test_any_length_fills_a_window(length, seed):
    found = LogMel(chunk_length=1)((np.random.default_rng(seed).standard_normal(length)).astype(np.float32))
    assert found.shape == (80, max(100, length // 160))
    assert np.isfinite(found).all()
    assert found.max() - found.min() <= 2.0 + 1e-6


def test_defaults_are_those_of_transformers():
    theirs = extractor()
    assert (LogMel().samples, LogMel().frames) == (theirs.n_samples, theirs.nb_max_frames)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_fft": "x"}, "n_fft must be a positive whole number, not 'x'"),
        ({"hop_length": 0}, "hop_length must be a positive"),
        ({"dither": 0.1}, "dither adds random noise"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=rf"p\.json: {message}"):
        LogMel.parse(settings, Path("p.json"))
