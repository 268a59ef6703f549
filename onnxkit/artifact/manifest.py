"""The manifest `onnxkit.json`: what a model directory holds and how it came to be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from onnxkit.artifact.digests import FileEntry
from onnxkit.errors import InputError
from onnxkit.report import to_plain
from onnxkit.runtime import TensorSpec

T = TypeVar("T")

MANIFEST_NAME = "onnxkit.json"
MANIFEST_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Component:
    """One graph of the directory.

    Attributes:
        file: its ONNX file, relative to the directory.
        inputs: what a caller must feed.
        outputs: what it returns.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of the check that a stage made of its output.

    Attributes:
        passed: whether every case was within the tolerance.
        against: what it was compared with ("PyTorch 2.13.0", "its input").
        tolerance: allowed largest difference over the largest reference value.
        worst: the largest that was found, same unit.
        output: the output that it was found in.
        cases: names of the cases that were compared.
    """

    passed: bool
    against: str
    tolerance: float
    worst: float
    output: str
    cases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One stage that the model went through.

    Attributes:
        stage: "export", "optimize", "quantize", …
        argv: the command line that repeats it; empty when Python called.
        options: every resolved option, as {name: {"value": …, "source": "default" | …}}.
        versions: package versions that made it.
        input_digest: digest of what it was made from, `sha256:…`, or a Hub commit; "" when unknown.
        measured: what the stage measured.
        created: UTC time, ISO 8601; SOURCE_DATE_EPOCH is honoured.
    """

    stage: str
    argv: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    input_digest: str
    measured: Mapping[str, Any]
    created: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `onnxkit.json`.

    Law: `Manifest.from_json(m.to_json()) == m` for every manifest of plain JSON values.

    Attributes:
        schema: version of this format; a newer one than onnxkit knows is refused.
        task: exact task name.
        components: the graphs by name; a single one is called "model".
        files: every file of the directory but this one, by relative name.
        verified: the check of this very content, or None when there was none.
        history: one entry a stage, oldest first.
    """

    schema: int = MANIFEST_SCHEMA
    task: str
    components: Mapping[str, Component]
    files: Mapping[str, FileEntry]
    verified: Verification | None = None
    history: tuple[HistoryEntry, ...] = field(default=())

    def to_json(self) -> str:
        """Return the text of `onnxkit.json`: indented, keys in a fixed order, one newline at the end."""
        plain = to_plain(self)
        for key in ("components", "files"):
            plain[key] = dict(sorted(plain[key].items()))
        return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = MANIFEST_NAME) -> Manifest:
        """Read the text of `onnxkit.json`; `where` names it in errors.

        Raises:
            InputError: no JSON, something missing or of the wrong type, or a newer schema.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: no manifest: {error}") from error
        return cls.from_plain(data, where=where)

    @classmethod
    def from_plain(cls, data: Any, *, where: str = MANIFEST_NAME) -> Manifest:
        """Build a manifest from parsed JSON; raises InputError as `from_json` does."""
        try:
            schema = _typed(data["schema"], int)
            if schema > MANIFEST_SCHEMA:
                raise InputError(
                    f"{where}: manifest schema {schema} is newer than this onnxkit reads "
                    f"({MANIFEST_SCHEMA}); upgrade onnxkit"
                )
            return cls(
                schema=schema,
                task=_typed(data["task"], str),
                components={_typed(k, str): _component(v) for k, v in data["components"].items()},
                files={_typed(k, str): _file(v) for k, v in data["files"].items()},
                verified=None if data["verified"] is None else _verification(data["verified"]),
                history=tuple(_history(entry) for entry in data["history"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{where}: damaged manifest ({type(error).__name__}: {error})") from error


def _typed(value: Any, kind: type[T]) -> T:
    """Return `value` when it is of the type `kind`; a bool is no int, an int passes as a float."""
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind.__name__}, found {str(value)[:60]!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_typed(item, str) for item in _typed(value, list))


def _component(data: Any) -> Component:
    return Component(
        file=_typed(data["file"], str),
        inputs=tuple(_spec(spec) for spec in _typed(data["inputs"], list)),
        outputs=tuple(_spec(spec) for spec in _typed(data["outputs"], list)),
    )


def _spec(data: Any) -> TensorSpec:
    shape = tuple(_dimension(dim) for dim in _typed(data["shape"], list))
    return TensorSpec(name=_typed(data["name"], str), dtype=_typed(data["dtype"], str), shape=shape)


def _dimension(value: Any) -> int | str | None:
    return value if value is None or isinstance(value, str) else _typed(value, int)


def _file(data: Any) -> FileEntry:
    sha256, size = _typed(data["sha256"], str), _typed(data["size_bytes"], int)
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or size < 0:
        raise ValueError(f"no SHA-256 digest and size: {sha256[:80]!r}, {size}")
    return FileEntry(sha256=sha256, size_bytes=size)


def _verification(data: Any) -> Verification:
    return Verification(
        passed=_typed(data["passed"], bool),
        against=_typed(data["against"], str),
        tolerance=_typed(data["tolerance"], float),
        worst=_typed(data["worst"], float),
        output=_typed(data["output"], str),
        cases=_texts(data["cases"]),
    )


def _history(data: Any) -> HistoryEntry:
    versions = _typed(data["versions"], dict)
    return HistoryEntry(
        stage=_typed(data["stage"], str),
        argv=_texts(data["argv"]),
        options={key: _typed(option, dict) for key, option in _typed(data["options"], dict).items()},
        versions={key: _typed(version, str) for key, version in versions.items()},
        input_digest=_typed(data["input_digest"], str),
        measured=_typed(data["measured"], dict),
        created=_typed(data["created"], str),
    )
