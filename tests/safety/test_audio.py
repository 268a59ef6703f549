"""Audio files: every format alike, resampled, and whatever is wrong with them named."""

from __future__ import annotations

import sys
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.errors import EnvironmentProblem, InputError
from onnxkit.safety import audio, read_audio
from onnxkit.safety.audio import mono, resample
from tests.speech import RATE, tone

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")

FORMATS = {
    "wav": ("WAV", "PCM_16", 4e-5), "float.wav": ("WAV", "FLOAT", 0), "24.wav": ("WAV", "PCM_24", 1e-6),
    "8.wav": ("WAV", "PCM_U8", 0.01), "flac": ("FLAC", "PCM_16", 4e-5), "ogg": ("OGG", "VORBIS", 0.3),
    "opus": ("OGG", "OPUS", 0.3), "mp3": ("MP3", None, 0.3), "aiff": ("AIFF", "PCM_16", 4e-5),
}  # fmt: skip


def write(path, samples, rate=RATE, kind=("WAV", "PCM_16")):
    soundfile.write(path, samples, rate, format=kind[0], subtype=kind[1])
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_samples(tmp_path, suffix):
    kind, subtype, tolerance = FORMATS[suffix]
    samples = tone(1.0)
    found = read_audio(write(tmp_path / f"a.{suffix}", samples, kind=(kind, subtype)), RATE)
    assert (found.dtype, found.shape) == (np.float32, samples.shape)
    assert np.abs(found - samples).max() <= tolerance


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.5), tone(0.5, seed=1)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), kind=("WAV", "FLOAT"))
    np.testing.assert_allclose(read_audio(path, RATE), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_in_blocks_equals_soxr_at_once(tmp_path, rate, monkeypatch):
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 1_000)
    samples = tone(1.3, rate=rate)
    path = write(tmp_path / "a.wav", samples, rate, kind=("WAV", "FLOAT"))
    expected = soxr.resample(samples, rate, RATE)
    np.testing.assert_array_equal(read_audio(path, RATE), expected)
    np.testing.assert_array_equal(resample(samples, rate, RATE), expected)


def test_a_resampled_sine_is_that_sine():
    times = np.arange(44_100) / 44_100
    found = resample(np.sin(2 * np.pi * 440 * times).astype(np.float32), 44_100, RATE)
    expected = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_plain_wav_needs_no_package(tmp_path, monkeypatch, subtype, channels):
    samples = np.stack([tone(0.4, seed=seed) for seed in range(channels)], axis=1)
    path = write(tmp_path / "a.wav", samples, kind=("WAV", subtype))
    expected = read_audio(path, RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    np.testing.assert_array_equal(read_audio(path, RATE), expected)


def test_what_needs_a_package_says_which(tmp_path, monkeypatch):
    flac = write(tmp_path / "a.flac", tone(0.1), kind=("FLAC", "PCM_16"))
    wav = write(tmp_path / "a.wav", tone(0.1), rate=8_000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(EnvironmentProblem, match=r"a\.flac needs the package soundfile.*onnxkit\[audio\]"):
        read_audio(flac, RATE)
    with pytest.raises(EnvironmentProblem, match=r"soxr: pip install 'onnxkit\[audio\]'"):
        read_audio(wav, RATE)


def test_missing_empty_and_foreign_files_name_themselves(tmp_path):
    empty, text = tmp_path / "e.wav", tmp_path / "t.mp3"
    empty.write_bytes(b"")
    text.write_bytes(b"hello, I am text")
    for path, message in [
        (tmp_path / "none.wav", r"none\.wav: no such sound file"),
        (tmp_path, "is a directory"),
        (empty, r"e\.wav: an empty file"),
        (text, r"t\.mp3: no audio in a known format .*ffmpeg"),
        (write(tmp_path / "z.wav", np.zeros(0, np.float32)), r"z\.wav: holds no sound"),
    ]:
        with pytest.raises(InputError, match=message):
            read_audio(path, RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_truncated_files(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", tone(1.0), kind=FORMATS[suffix][:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    with pytest.raises(InputError, match=rf"a\.{suffix}: damaged audio"):
        read_audio(path, RATE)
    if suffix == "flac":
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"a\.flac: damaged audio \(.*lost sync"):
            read_audio(path, RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, value):
    samples = tone(0.1)
    samples[7] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        read_audio(write(tmp_path / "a.wav", samples, kind=("WAV", "FLOAT")), RATE)


def test_too_long_or_of_an_odd_shape(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", tone(1.0))
    monkeypatch.setattr(audio, "MAX_AUDIO_SECONDS", 0)
    with pytest.raises(InputError, match="hours long; at most 0 are read: split it"):
        read_audio(path, RATE)
    monkeypatch.undo()
    for rate, channels in [(100, 1), (RATE, 40)]:
        write(path, np.zeros((10, channels)), rate)
        with pytest.raises(InputError, match=f"{rate} samples a second in {channels} channels"):
            read_audio(path, RATE)


def test_a_header_that_promises_too_little(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "NONE"))
        file.writeframes(np.zeros(3 * RATE, np.int16).tobytes())
    monkeypatch.setattr(audio, "MAX_AUDIO_SECONDS", 2)
    monkeypatch.setattr(audio, "_check_header", lambda *_: None)
    with pytest.raises(InputError, match="hours long"):
        read_audio(path, RATE)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["wav", "flac", "ogg"]), st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, suffix, seed):
    generator = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("a") / f"a.{suffix}"
    content = bytearray(write(path, tone(0.2), kind=FORMATS[suffix][:2]).read_bytes())
    for position in generator.integers(0, min(len(content), 400), 5):
        content[position] = generator.integers(256)
    path.write_bytes(content)
    try:
        assert np.isfinite(read_audio(path, RATE)).all()
    except InputError as error:
        assert str(path) in str(error)


def test_mono_of_one_channel_is_that_channel():
    samples = tone(0.01)
    np.testing.assert_array_equal(mono(samples[:, None]), samples)
