"""What a header promises beyond the sound that is there."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from onnxkit.safety.audio_lengths import promised_share
from tests.speech import RATE, tone

soundfile = pytest.importorskip("soundfile")

CONTAINERS = {
    "wav": ("WAV", "FILE"), "rifx": ("WAV", "BIG"), "wavex": ("WAVEX", "FILE"), "aiff": ("AIFF", "FILE"),
    "au": ("AU", "FILE"), "mp3": ("MP3", "FILE"), "tagged mp3": ("MP3", "FILE"),
}  # fmt: skip
ID3 = b"ID3\x04\0\0\0\0\2\1" + bytes(2 * 128 + 1)


def written(path: Path, container: str) -> bytes:
    form, endian = CONTAINERS[container]
    soundfile.write(
        path, tone(1.0), RATE, format=form, subtype=None if form == "MP3" else "PCM_16", endian=endian
    )
    if container.startswith("tagged"):
        path.write_bytes(ID3 + path.read_bytes())
    return path.read_bytes()


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_is_missing_is_told_by_the_header(tmp_path: Path, container: str) -> None:
    path = tmp_path / "a"
    whole = written(path, container)
    assert promised_share(path) == 1.0
    before = len(ID3) if container.startswith("tagged") else 0
    for kept in (len(whole) // 3, len(whole) - 100):
        path.write_bytes(whole[:kept])
        assert promised_share(path) == pytest.approx((len(whole) - before) / (kept - before), rel=0.02)
        if "mp3" not in container:
            assert promised_share(path) * soundfile.info(path).frames == pytest.approx(RATE, abs=16)


def test_what_stands_behind_the_sound_may_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(written(path, "wav") + b"LIST" + struct.pack("<I", 400) + b"INFO")
    assert promised_share(path) == 1.0


def test_chunks_before_the_sound_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    whole = written(path, "wav")
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    path.write_bytes(whole[:36] + odd + whole[36 : 44 + RATE])
    assert promised_share(path) == 2.0


@pytest.mark.parametrize("size", [0, 0x7F00_0008, 0x7FFF_EFFC, 0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_who_writes_into_a_pipe_promises_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    whole = bytearray(written(path, "wav"))
    whole[40:44] = struct.pack("<I", size)
    path.write_bytes(whole)
    assert promised_share(path) == 1.0


@pytest.mark.parametrize("container", CONTAINERS)
def test_headers_that_are_damaged_promise_nothing(tmp_path: Path, container: str) -> None:
    path, generator = tmp_path / "a", np.random.default_rng(0)
    whole = written(path, container)
    for cut in range(64):
        path.write_bytes(whole[:cut])
        assert promised_share(path) >= 1.0
    for _ in range(100):
        changed = bytearray(whole)
        for position in generator.integers(0, 64, 4):
            changed[position] = generator.integers(256)
        path.write_bytes(changed)
        assert promised_share(path) >= 1.0
