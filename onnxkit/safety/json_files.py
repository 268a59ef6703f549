"""JSON files that other tools wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.paths import regular_file
from onnxkit.safety.text import printable

MAX_JSON_BYTES = 4 * 1024 * 1024


def read_json(
    path: Path, *, trust_remote_code: bool = False, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Read a JSON object from at most `max_bytes` bytes.

    Unless `trust_remote_code`, the object must not ask for code that comes with the model, at any
    depth: a nested value once overrode the caller's False (CVE-2026-5241).

    Raises:
        InputError: missing, too large, not UTF-8, not JSON (with line and column), no object.
        UnsafeError: it names code to load.
    """
    value = read_json_value(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {_kind(value)}")
    if not trust_remote_code:
        refuse_remote_code(value, path)
    return value


def read_json_value(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read any JSON value from at most `max_bytes` bytes, without a look at what it asks for.

    Raises:
        InputError: missing, too large, not UTF-8, or not JSON (with line and column).
    """
    size = regular_file(path).st_size
    if size > max_bytes:
        raise InputError(f"{path}: {size} bytes of JSON; at most {max_bytes} are read")
    try:
        return json.loads(path.read_bytes()[: max_bytes + 1].decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{path}: not JSON: {error.msg} at {where}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not JSON: no UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable JSON: nested too deeply or a number too long") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def refuse_remote_code(value: Any, path: Path) -> None:
    """Raise UnsafeError when `value`, at any depth, names code to download or import."""
    for where, key, item in _items(value, ""):
        if _asks_for_code(key, item):
            raise UnsafeError(
                f"{path}: {printable(key, limit=60)!r} (at {printable(where, limit=120)}) asks for code that "
                "comes with the model; "
                "read that code, then pass --trust-remote-code, or delete the entry"
            )


def _asks_for_code(key: str, item: Any) -> bool:
    if key in ("auto_map", "trust_remote_code", "custom_pipelines"):
        return bool(item)
    if "_implementation" in key:
        # A Hub repository in place of "eager" or "sdpa": its kernels are downloaded and imported
        # (CVE-2026-4372).
        return "/" in json.dumps(item)
    return False


def _items(value: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (dotted place, key, value) of every object member, without recursion."""
    waiting = [(where, value)]
    while waiting:
        place, current = waiting.pop()
        if isinstance(current, dict):
            for key, item in current.items():
                inner = f"{place}.{key}" if place else key
                yield inner, key, item
                waiting.append((inner, item))
        elif isinstance(current, list):
            waiting.extend((f"{place}[{i}]", item) for i, item in enumerate(current))


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a single value")
