"""What a stage returns: frozen dataclasses that turn into JSON.

Every stage defines its own report beside its public function, as a frozen keyword-only
dataclass that inherits from `Report`. Field names are snake_case and carry their unit
(`latency_ms`, `size_bytes`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = "onnxkit/1"


def to_plain(value: Any) -> Any:
    """Turn dataclasses, paths, tuples and numpy scalars into what `json` writes.

    Numbers that JSON cannot express (NaN, infinities) become None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return to_plain(value.tolist())
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Base of all reports."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        plain: dict[str, Any] = to_plain(self)
        return plain
