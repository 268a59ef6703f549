"""A file that keeps what calibration found, for the next time that the same model meets the same data.

JSON, to be read by people, too; one value a line. It belongs to one model, one choice of samples and one set
of options, all of which it names: another one is refused, never used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, ResourceError
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.report import Calibration
from onnxkit.safety import read_json

SCHEMA = "onnxkit/calibration/1"

_MAX_BYTES = 256 << 20
_WORDS = {"model": "another model", "data": "other calibration samples"}

Options = Mapping[str, str | int | float | bool | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a cache belongs to.

    Attributes:
        model: digest of the model directory, `sha256:<hex>`.
        data: digest of the samples and how they are read.
        options: those that the ranges depend on, by the command line's names.
    """

    model: str
    data: str
    options: Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedCalibration:
    """What is kept.

    Attributes:
        key: what it belongs to.
        ranges: component -> value name -> range.
        facts: component -> what the report says about the runs.
        extra: what else the caller needs next time, in JSON's types.
    """

    key: CacheKey
    ranges: Mapping[str, Mapping[str, Range]]
    facts: Mapping[str, Calibration]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def cache_key(model: ModelDir, data: DataSet, options: Options) -> CacheKey:
    """Return the key of a model, samples and options; reads all of the model's files."""
    return CacheKey(model=model.digest(), data=data.digest(), options=dict(options))


def read_cache(path: Path, key: CacheKey) -> CachedCalibration | None:
    """Return what a file keeps for this key; None where there is no file yet.

    Raises:
        InputError: no calibration cache, or that of another model, other samples or options; says what
            differs.
    """
    if not path.exists():
        return None
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


def write_cache(path: Path, cached: CachedCalibration) -> None:
    """Write the file, at once: a reader sees all of it or nothing.

    Raises:
        ResourceError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(_text(cached), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path}: the calibration cache cannot be written ({error.strerror})") from error
    finally:
        beside.unlink(missing_ok=True)


def _text(cached: CachedCalibration) -> str:
    head = {
        "schema": SCHEMA,
        "model": cached.key.model,
        "data": cached.key.data,
        "options": dict(cached.key.options),
        "facts": {name: dataclasses.asdict(facts) for name, facts in cached.facts.items()},
        "extra": dict(cached.extra),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    components = []
    for component, ranges in cached.ranges.items():
        rows = [f"  {json.dumps(value)}: [{one.low!r}, {one.high!r}]" for value, one in ranges.items()]
        components.append(f" {json.dumps(component)}: {{\n" + ",\n".join(rows) + "\n }")
    return "\n".join(["{", *lines, '"ranges": {', ",\n".join(components), "}", "}"]) + "\n"


def _load(path: Path) -> CachedCalibration:
    plain = read_json(path, max_bytes=_MAX_BYTES)
    if plain.get("schema") != SCHEMA:
        raise InputError(f"{path}: no calibration cache of this version (schema {SCHEMA})")
    try:
        return CachedCalibration(
            key=CacheKey(model=plain["model"], data=plain["data"], options=dict(plain["options"])),
            ranges={
                component: {value: _range(pair) for value, pair in ranges.items()}
                for component, ranges in plain["ranges"].items()
            },
            facts={name: Calibration(**facts) for name, facts in plain["facts"].items()},
            extra=dict(plain["extra"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a damaged calibration cache ({error}); remove it") from error


def _range(pair: Any) -> Range:
    low, high = (float(number) for number in pair)
    if not low <= high or high - low == float("inf"):
        raise ValueError(f"range {pair}")
    return Range(low=low, high=high)
