"""Audio files: length and shape from the header first, decoded block by block, mono at one rate."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import EnvironmentProblem, InputError
from onnxkit.safety.paths import regular_file
from onnxkit.safety.text import printable

MAX_AUDIO_SECONDS = 4 * 3600
"""Longer recordings are refused: four hours are 0.9 GB of samples at 16 kHz."""
MAX_CHANNELS = 32
"""More are refused: no recording of speech, and much memory a block."""

Array = np.ndarray[Any, np.dtype[Any]]

_RATES = range(1_000, 768_001)
_BLOCK_FRAMES = 65_536
# The beginnings of wav (RIFF, RF64, W64), flac, ogg, aiff, au and caf: no parser of libsndfile's rarer
# formats ever sees a foreign file. mp3 begins with a tag or a frame, whose first eleven bits are set.
_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"ID3")
_PIP = "pip install 'onnxkit[audio]'"


def read_audio(path: Path, rate: int) -> Array:
    """Read wav, flac, ogg, mp3, aiff, au or caf as float32 [samples], mono, at `rate` samples a second.

    The channels' mean is taken, and `resample` brings it to `rate`. Plain PCM wav files need no
    package; the others need soundfile.

    Raises:
        InputError: missing, empty, damaged, no audio in a known format, longer than `MAX_AUDIO_SECONDS`,
            NaN or infinite samples; names the file.
        EnvironmentProblem: soundfile (or soxr, where the file has another rate) is not installed.
    """
    size = regular_file(path, "sound file").st_size
    shown = printable(str(path), limit=300)
    if size == 0:
        raise InputError(f"{shown}: an empty file, no audio")
    _check_magic(path, shown)
    try:
        blocks, found = _opened(path, shown)
        samples = _collected(blocks, found, rate, shown)
    except MemoryError as error:
        raise InputError(f"{shown}: too large to decode; split it") from error
    if len(samples) == 0:
        raise InputError(f"{shown}: holds no sound (0 samples)")
    if not np.isfinite(samples).all():
        raise InputError(f"{shown}: holds NaN or infinite samples; it is damaged, or no recording")
    return samples


def resample(samples: Array, found: int, rate: int) -> Array:
    """Bring float32 [samples] from `found` to `rate` samples a second.

    By soxr with its high quality (a linear-phase filter that passes 91 % of the band), which is also
    what `librosa.load` uses by default; librosa then pads or cuts to ceil(samples * rate / found), so
    that it may have one sample more. torchaudio's resampler, which transformers' pipeline takes for
    arrays, is another filter.

    Raises:
        EnvironmentProblem: soxr is not installed.
    """
    if found == rate:
        return samples
    resampled: Array = _soxr().resample(samples, found, rate, quality="HQ")
    return resampled


def mono(samples: Array) -> Array:
    """Return the mean of the channels of float32 [samples, channels] as [samples]."""
    mixed: Array = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    return mixed


def _check_magic(path: Path, shown: str) -> None:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from error
    frame = len(start) > 1 and start[0] == 0xFF and start[1] >= 0xE0
    if not frame and not start.startswith(_MAGIC):
        raise InputError(
            f"{shown}: no audio in a known format (wav, flac, ogg, mp3, aiff, au, caf); "
            "convert it, for instance with: ffmpeg -i FILE out.wav"
        )


def _opened(path: Path, shown: str) -> tuple[Iterator[Array], int]:
    """Return the file's blocks, float32 [frames, channels], and its rate; what they raise is ours."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, libsndfile is not
        plain = _open_wave(path, shown)
        if plain is None:
            raise EnvironmentProblem(
                f"reading {shown} needs the package soundfile: {_PIP} (plain PCM wav files are read without)"
            ) from error
        return plain
    try:
        file = soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{shown}: {_reason(error)}") from error
    try:
        _check_header(file.samplerate, file.channels, file.frames, shown)
    except InputError:
        file.close()
        raise
    return _decoded(file, shown), int(file.samplerate)


def _decoded(file: Any, shown: str) -> Iterator[Array]:
    import soundfile

    count = 0
    with file:
        while True:
            try:
                block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, ValueError) as error:
                raise InputError(f"{shown}: {_reason(error)}") from error
            if not len(block):
                break
            count += len(block)
            yield block
    # The length of an mp3 may be an estimate; the other formats know theirs.
    if count < file.frames and file.format != "MP3":
        raise InputError(f"{shown}: truncated: {count} of {file.frames} samples can be read")


def _open_wave(path: Path, shown: str) -> tuple[Iterator[Array], int] | None:
    """Open a PCM wav file with the standard library; None where it is no such file."""
    try:
        file = wave.open(str(path), "rb")  # noqa: SIM115  (closed by the iterator)
    except (wave.Error, EOFError, OSError):
        return None
    try:
        _check_header(file.getframerate(), file.getnchannels(), file.getnframes(), shown)
        if file.getsampwidth() not in (1, 2, 3, 4):
            raise InputError(f"{shown}: {8 * file.getsampwidth()}-bit samples; at most 32-bit ones are read")
    except InputError:
        file.close()
        raise
    return _wave_blocks(file), file.getframerate()


def _wave_blocks(file: wave.Wave_read) -> Iterator[Array]:
    width, channels = file.getsampwidth(), file.getnchannels()
    with file:
        while raw := file.readframes(_BLOCK_FRAMES):
            whole = len(raw) - len(raw) % (width * channels)
            yield _pcm(raw[:whole], width).reshape(-1, channels)


def _pcm(raw: bytes, width: int) -> Array:
    """Return little-endian PCM of `width` bytes as float32 in [-1, 1): 8-bit is unsigned, the rest signed."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    integers = np.frombuffer(raw, f"<i{width}")
    return (integers / 2.0 ** (8 * width - 1)).astype(np.float32)


def _check_header(rate: int, channels: int, frames: int, shown: str) -> None:
    if rate not in _RATES or not 1 <= channels <= MAX_CHANNELS:
        raise InputError(
            f"{shown}: {rate} samples a second in {channels} channels; {_RATES.start} to "
            f"{_RATES.stop - 1} in 1 to {MAX_CHANNELS} are read"
        )
    _check_length(frames, rate, shown)


def _check_length(frames: int, rate: int, shown: str) -> None:
    if frames > rate * MAX_AUDIO_SECONDS:
        raise InputError(
            f"{shown}: {frames / rate / 3600:.1f} hours long; "
            f"at most {MAX_AUDIO_SECONDS // 3600} are read: split it"
        )


def _collected(blocks: Iterator[Array], found: int, rate: int, shown: str) -> Array:
    """Mix and resample block by block (the same values as at once); only mono samples at `rate` stay."""
    stream = None if found == rate else _soxr().ResampleStream(found, rate, 1, dtype="float32", quality="HQ")
    kept: list[Array] = []
    count = 0
    for block in blocks:
        count += len(block)
        _check_length(count, found, shown)  # a header may say less than there is
        single = np.ascontiguousarray(mono(block))
        kept.append(stream.resample_chunk(single) if stream else single)
    if stream:
        kept.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(kept) if kept else np.empty(0, np.float32)


def _soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise EnvironmentProblem(
            f"audio of another rate than the model's needs the package soxr: {_PIP}"
        ) from error
    return soxr


def _reason(error: Exception) -> str:
    """Say in libsndfile's words what is wrong; its own errors carry them apart from the file's name."""
    said = str(getattr(error, "error_string", "")).strip().rstrip(".")
    return f"damaged audio ({printable(said, limit=120)})" if said else "damaged audio, or in no known format"
