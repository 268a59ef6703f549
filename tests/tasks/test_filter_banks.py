"""Kaldi's filter banks against transformers' feature extractors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxkit.errors import InputError
from onnxkit.tasks.filter_banks import FilterBanks
from tests.speech import RATE, tone

PATH = Path("preprocessor_config.json")


def silent_start(seconds):
    return np.concatenate([np.zeros(800, np.float32), tone(seconds)])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_mel_bins": 40, "normalize_vars": False},
        {"do_ceptral_normalize": False},
        {"normalize_means": False},
    ],
)
@pytest.mark.parametrize("seconds", [0.031, 1.234])
def test_speech2text(settings, seconds):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Speech2TextFeatureExtractor(
        feature_size=settings.get("num_mel_bins", 80), **settings
    )
    samples = silent_start(seconds)
    right = theirs(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    banks = FilterBanks.speech2text(json.loads(theirs.to_json_string()), PATH)
    found, real = banks(samples)
    assert found.dtype == np.float32
    assert len(found) == len(real) == banks.length(len(samples)) == real.sum()
    np.testing.assert_allclose(found, right, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("seconds", [1.0, 1.01])
def test_seamless(seconds):
    """Pairs of frames; one that lacks its second frame is masked."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.SeamlessM4TFeatureExtractor()
    samples = silent_start(seconds)
    right = theirs(samples, sampling_rate=RATE, return_tensors="np")
    banks = FilterBanks.seamless(json.loads(theirs.to_json_string()), PATH)
    found, real = banks(samples)
    assert banks.length(len(samples)) == len(found)
    np.testing.assert_allclose(found, right["input_features"][0], atol=2e-4, rtol=1e-4)
    assert real.tolist() == right["attention_mask"][0].tolist()


def test_long_recordings_are_read_in_blocks():
    samples = tone(31.0)
    banks = FilterBanks(means=False, variances=False)
    whole, _ = banks(samples)
    part, _ = banks(samples[3010 * 160 :])
    np.testing.assert_allclose(whole[3010:], part, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(InputError, match="399 samples are too short"):
        FilterBanks()(np.zeros(399, np.float32))
    with pytest.raises(InputError, match="dither"):
        FilterBanks.speech2text({"dither": 1.0}, PATH)
    with pytest.raises(InputError, match="num_mel_bins must be a positive"):
        FilterBanks.seamless({"num_mel_bins": 0}, PATH)
