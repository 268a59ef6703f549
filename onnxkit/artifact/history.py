"""How a stage was called, and the history entry that it becomes."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from onnxkit import __version__
from onnxkit.artifact.manifest import HistoryEntry
from onnxkit.errors import UsageError
from onnxkit.report import to_plain

# Whose version an output may depend on; recorded when the stage has imported them.
_PACKAGES = (
    "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "optimum", "safetensors", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
# A credential never enters a file that travels.
_SECRETS = ("token", "password", "api_key")


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """How a stage was called: what goes into the history.

    Attributes:
        stage: "export", "optimize", "quantize", …
        argv: the command line that repeats it; empty when Python called.
        options: every resolved option by name.
        sources: where each came from ("default", "environment", "command line"); "default" unless named.
    """

    stage: str
    argv: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def history_entry(invocation: Invocation, *, input_digest: str, measured: Mapping[str, Any]) -> HistoryEntry:
    """Return the history entry of a call: options with their sources, versions, time; no credentials."""
    options = {
        name: {
            "value": to_plain(_without_secret(name, value)),
            "source": invocation.sources.get(name, "default"),
        }
        for name, value in sorted(invocation.options.items())
    }
    return HistoryEntry(
        stage=invocation.stage,
        argv=_argv_without_secrets(invocation.argv),
        options=options,
        versions=_versions(),
        input_digest=input_digest,
        measured=to_plain(measured),
        created=created_now(),
    )


def created_now() -> str:
    """Return the UTC time in ISO 8601, or the one that SOURCE_DATE_EPOCH (seconds) asks for.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is set to something else than a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}; expected seconds since 1970") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions() -> dict[str, str]:
    found = {"onnxkit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version
    return found


def _is_secret(name: str) -> bool:
    return name.lstrip("-").replace("-", "_").lower() in _SECRETS


def _without_secret(name: str, value: Any) -> Any:
    return "(not recorded)" if _is_secret(name) and value else value


def _argv_without_secrets(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the values of `--token VALUE` and `--token=VALUE`."""
    kept: list[str] = []
    hide = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if hide:
            kept.append("(not recorded)")
        elif equals and _is_secret(name):
            kept.append(f"{name}=(not recorded)")
        else:
            kept.append(word)
        hide = not hide and not equals and word.startswith("--") and _is_secret(word)
    return tuple(kept)
