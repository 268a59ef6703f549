"""A file that keeps what calibration found, for the next time that the same model meets the same data.

JSON, to be read by people, too; one value a line. It belongs to one model, one choice of samples and one set
of options, all of which it names: another one is refused, never used. What grows with the square of a layer's
width (Hessians) or with the tokens (samples of activations) is not kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, ResourceError
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.input_statistics import Floats, InputStatistics
from onnxkit.quantize.report import Calibration
from onnxkit.safety import read_json

SCHEMA = "onnxkit/calibration/2"

_MAX_BYTES = 1 << 30
_WORDS = {"model": "another model", "data": "other calibration samples"}
_CHANNELS = ("count", "absmax", "mean", "mean_square")

Options = Mapping[str, str | int | float | bool | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a cache belongs to.

    Attributes:
        model: digest of the model directory, `sha256:<hex>`.
        data: digest of the samples and how they are read.
        options: those that what is kept depends on, by the command line's names.
    """

    model: str
    data: str
    options: Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptScaling:
    """The factors that the input of some layers was divided by.

    Attributes:
        layers: names of those that read the one input.
        alpha: the exponent that the factors were made with.
        factors: float32 `[K]`.
    """

    layers: tuple[str, ...]
    alpha: float
    factors: Floats


@dataclasses.dataclass(kw_only=True)
class CalibrationCache:
    """What is kept; a component that is in none of its parts has not been looked at.

    Attributes:
        key: what it belongs to.
        facts: component -> what the report says about the runs.
        channels: component -> value name -> statistics of the value's channels, before scaling.
        scaling: component -> what inputs were divided by, by SmoothQuant or AWQ.
        ranges: component -> value name -> range, after scaling.
    """

    key: CacheKey
    facts: dict[str, Calibration] = dataclasses.field(default_factory=dict)
    channels: dict[str, Mapping[str, InputStatistics]] = dataclasses.field(default_factory=dict)
    scaling: dict[str, tuple[KeptScaling, ...]] = dataclasses.field(default_factory=dict)
    ranges: dict[str, Mapping[str, Range]] = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> tuple[str, ...]:
        """What it has, in words; nothing where it is new."""
        parts: Mapping[str, Mapping[str, Sized]] = {
            "ranges": self.ranges,
            "smoothing": self.scaling,
            "channel statistics": self.channels,
        }
        return tuple(name for name, part in parts.items() if any(map(len, part.values())))


def cache_key(model: ModelDir, data: DataSet, options: Options) -> CacheKey:
    """Return the key of a model, samples and options; reads all of the model's files."""
    return CacheKey(model=model.digest(), data=data.digest(), options=dict(options))


def read_cache(path: Path, key: CacheKey) -> CalibrationCache:
    """Return what a file keeps for this key; an empty cache where there is no file yet.

    Raises:
        InputError: no calibration cache, or that of another model, other samples or options; says what
            differs.
    """
    if not path.exists():
        return CalibrationCache(key=key)
    found = _load(path)
    differences = [
        _WORDS[name] for name in ("model", "data") if getattr(found.key, name) != getattr(key, name)
    ]
    for name in sorted({*found.key.options, *key.options}):
        there, here = found.key.options.get(name), key.options.get(name)
        if there != here:
            differences.append(f"{name} {there} instead of {here}")
    if differences:
        raise InputError(
            f"{path} is the calibration cache of {', '.join(differences)}: name another file, or remove it"
        )
    return found


def write_cache(path: Path, cache: CalibrationCache) -> None:
    """Write the file, at once: a reader sees all of it or nothing.

    Raises:
        ResourceError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(_text(cache), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path}: the calibration cache cannot be written ({error.strerror})") from error
    finally:
        beside.unlink(missing_ok=True)


def _text(cache: CalibrationCache) -> str:
    facts = {name: dataclasses.asdict(facts) for name, facts in cache.facts.items()}
    head = {"schema": SCHEMA, **dataclasses.asdict(cache.key), "facts": facts}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    ranges = {
        component: _rows("{}", (f"{json.dumps(n)}: [{r.low!r}, {r.high!r}]" for n, r in found.items()))
        for component, found in cache.ranges.items()
    }
    scaling = {
        component: _rows("[]", (_object(each, ("layers", "alpha", "factors")) for each in found))
        for component, found in cache.scaling.items()
    }
    channels = {
        component: _rows("{}", (f"{json.dumps(n)}: {_object(s, _CHANNELS)}" for n, s in found.items()))
        for component, found in cache.channels.items()
    }
    parts = {"ranges": ranges, "scaling": scaling, "channels": channels}
    texts = [f'"{name}": {_rows("{}", _members(part))}' for name, part in parts.items()]
    return "\n".join(["{", *lines, ",\n".join(texts), "}"]) + "\n"


def _members(part: Mapping[str, str]) -> Iterable[str]:
    return (f"{json.dumps(component)}: {text}" for component, text in part.items())


def _rows(ends: str, rows: Iterable[str]) -> str:
    """A JSON object or array with a line for each of its members."""
    return f"{ends[0]}\n" + ",\n".join(rows) + f"\n{ends[1]}"


def _object(item: object, names: Iterable[str]) -> str:
    """Attributes as a JSON object; float32 with as many digits as it has."""
    values = ((name, getattr(item, name)) for name in names)
    texts = (
        f"{json.dumps(name)}: "
        + (f"[{', '.join(map(str, value))}]" if isinstance(value, np.ndarray) else json.dumps(value))
        for name, value in values
    )
    return "{" + ", ".join(texts) + "}"


def _load(path: Path) -> CalibrationCache:
    plain = read_json(path, max_bytes=_MAX_BYTES)
    if plain.get("schema") != SCHEMA:
        raise InputError(f"{path}: no calibration cache of this version (schema {SCHEMA}); remove it")
    try:
        return CalibrationCache(
            key=CacheKey(model=plain["model"], data=plain["data"], options=dict(plain["options"])),
            facts={name: Calibration(**facts) for name, facts in plain["facts"].items()},
            ranges={
                component: {value: _range(pair) for value, pair in ranges.items()}
                for component, ranges in plain["ranges"].items()
            },
            scaling={
                component: tuple(_scaling(**each) for each in found)
                for component, found in plain["scaling"].items()
            },
            channels={
                component: {value: _channels(**each) for value, each in found.items()}
                for component, found in plain["channels"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a damaged calibration cache ({error}); remove it") from error


def _range(pair: Any) -> Range:
    low, high = (float(number) for number in pair)
    if not low <= high or high - low == float("inf"):
        raise ValueError(f"range {pair}")
    return Range(low=low, high=high)


def _scaling(*, layers: Any, alpha: Any, factors: Any) -> KeptScaling:
    found = _floats(factors)
    if not (found > 0).all():
        raise ValueError("a factor is not positive")
    return KeptScaling(layers=tuple(map(str, layers)), alpha=float(alpha), factors=found)


def _channels(*, count: Any, absmax: Any, mean: Any, mean_square: Any) -> InputStatistics:
    arrays = {"absmax": _floats(absmax), "mean": _floats(mean), "mean_square": _floats(mean_square)}
    if len({len(each) for each in arrays.values()}) > 1:
        raise ValueError("channels of different number")
    return InputStatistics(count=int(count), **arrays)


def _floats(values: Any) -> Floats:
    found = np.array(values, np.float32)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError("no list of finite numbers")
    return found
