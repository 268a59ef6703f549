"""What all audio tasks share: recordings as float32 [samples], mono, at the model's rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.errors import InputError, OnnxkitError
from onnxkit.inputs import Sample, place
from onnxkit.safety import printable, read_audio
from onnxkit.safety.audio import MAX_CHANNELS, mono, resample
from onnxkit.safety.audio_lengths import promised_share
from onnxkit.tasks.base import Array, column_of
from onnxkit.tasks.processor_files import processor_settings, required_settings

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


_EXTRACTOR = "feature_extractor"
_MISSING_S = 0.01
"""What a header may promise beyond the sound that is there without a word about it."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """Sound that was read.

    Attributes:
        samples: float32 [samples], mono.
        caution: what is wrong with the file, which is read all the same.
    """

    samples: Array
    caution: str = ""


def recording(sample: Sample, rate: int) -> Recording:
    """Return a sample's `audio` as float32 [samples], mono, at `rate` samples a second.

    It is a path, or what Python callers have: an array at `rate`, a pair (array, its rate), or a
    mapping with `array` and `sampling_rate`, as the datasets library gives. Arrays are [samples],
    [samples, channels] or [channels, samples], floats in [-1, 1] or integers of the full range.

    Raises:
        InputError: no such column, a file or an array that holds no sound; names the sample's place.
        EnvironmentProblem: a package is missing.
    """
    where, value = place(sample), column_of(sample, "audio")
    if isinstance(value, str | Path):
        try:
            samples = read_audio(Path(value), rate)
        except OnnxkitError as error:
            raise error if str(value) in where else type(error)(f"{where}: {error}") from error
        return Recording(samples, _cut_short(Path(value), len(samples) / rate))
    array, found = _array_and_rate(value, rate, where)
    return Recording(resample(mono(_as_float(array, where)), found, rate))


def audio_sample(item: Any) -> Sample:
    """Turn what a Python caller passes into a sample: a mapping with a column `audio`, or its value."""
    if isinstance(item, Mapping) and "array" not in item:
        return item
    return {"audio": item}


def read_preprocessor(model: ModelDir, kinds: tuple[str, ...]) -> tuple[dict[str, Any], Path]:
    """Return preprocessor_config.json (or that part of processor_config.json), and its path.

    Args:
        model: where it stands.
        kinds: the values of `feature_extractor_type` that the caller understands.

    Raises:
        InputError: there is none, or it is of another kind.
    """
    settings, path = required_settings(model.path, _EXTRACTOR)
    kind = settings.get("feature_extractor_type", kinds[0])
    if kind not in kinds:
        raise InputError(
            f"{path}: the feature extractor {kind} is none that onnxkit has for this model "
            f"({', '.join(kinds)}); pass raw tensors (.npz) instead"
        )
    return settings, path


def whole_numbers(settings: Mapping[str, Any], path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return those of `names` that an extractor's settings, the content of `path`, give.

    Raises:
        InputError: a value that is no positive whole number, or dither (random noise on the samples).
    """
    chosen = {name: settings[name] for name in names if settings.get(name) is not None}
    for name, value in chosen.items():
        if not isinstance(value, int) or not 0 < value <= 1_000_000:
            raise InputError(f"{path}: {name} must be a positive whole number, not {value!r}")
    if settings.get("dither"):
        raise InputError(f"{path}: dither adds random noise; set it to 0.0 to transcribe")
    return chosen


def preprocessor_kind(model: ModelDir) -> str | None:
    """Return the `feature_extractor_type` of a directory, None where it says none."""
    settings, _ = processor_settings(model.path, _EXTRACTOR)
    kind = (settings or {}).get("feature_extractor_type")
    return kind if isinstance(kind, str) else None


def _cut_short(path: Path, seconds: float) -> str:
    """Say of how much of its sound a file was robbed, nothing where it is whole."""
    promised = seconds * promised_share(path)
    if promised - seconds < _MISSING_S:
        return ""
    return (
        f"{printable(str(path), limit=300)}: cut short: its header promises {promised:.2f} s of sound, "
        f"{seconds:.2f} s are there and were read"
    )


def _array_and_rate(value: Any, rate: int, where: str) -> tuple[Array, int]:
    found: Any = rate
    if isinstance(value, Mapping):
        value, found = value.get("array"), value.get("sampling_rate", rate)
    elif isinstance(value, tuple) and len(value) == 2:
        value, found = value
    if isinstance(found, bool) or not isinstance(found, int | np.integer) or not 0 < found < 1_000_000:
        raise InputError(
            f"{where}: the sampling rate must be a whole number of samples a second, not {found!r}"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal length
        raise InputError(f"{where}: audio must be a path or an array of samples") from error
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or array.size == 0:
        raise InputError(
            f"{where}: audio must be a path or an array of samples ([samples] or [samples, channels], floats "
            f"or integers, not empty), not {array.dtype} of shape {list(array.shape)}"
        )
    return array, int(found)


def _as_float(array: Array, where: str) -> Array:
    """Return samples as float32 [samples, channels], integers scaled to [-1, 1)."""
    table = array[:, None] if array.ndim == 1 else array if array.shape[1] <= array.shape[0] else array.T
    if table.shape[1] > MAX_CHANNELS:
        raise InputError(f"{where}: audio of {table.shape[1]} channels; at most {MAX_CHANNELS} are read")
    if table.dtype.kind == "f":
        floats = table.astype(np.float32)
    else:
        limits = np.iinfo(table.dtype)
        half = (int(limits.max) - int(limits.min) + 1) / 2
        floats = ((table - (half if limits.min == 0 else 0)) / half).astype(np.float32)
    if not np.isfinite(floats).all():
        raise InputError(f"{where}: the audio holds NaN or infinite samples")
    return floats
