"""What a search has measured so far, kept beside the output so that an interrupted run goes on.

A line of JSON for each variant, appended and flushed as it is measured: a killed process loses the one
it was at. The name `.<output>.onnxkit-search-<key>.jsonl` holds a digest of what the figures depend on; a
staging directory has another form of name, so `artifact.leftovers` leaves it alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onnxkit import __version__
from onnxkit.errors import GateFailed
from onnxkit.quantize.search.quality import Plans, Quality, Trial
from onnxkit.report import to_plain

_STALE_SECONDS = 7 * 24 * 3600.0
_MOST_BYTES = 64 << 20


class Journal:
    """Measured variants by their plans. Lines that cannot be read are as if never written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _read(path)
        self.found = len(self._known)

    def trial(self, measure: Trial, how: str) -> Trial:
        """`measure`, but what is known is not measured again; `how` tells ways of measuring apart."""

        def remembered(plans: Plans) -> Quality:
            key = f"{how}:{plans_digest(plans)}"
            if key not in self._known:
                self._append(key, measure(plans))
            return self._known[key]

        return remembered

    def _append(self, key: str, quality: Quality) -> None:
        self._known[key] = quality
        line = json.dumps({"plans": key, "quality": dataclasses.asdict(quality)}) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.path, flags, 0o666)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def journal_beside(out: Path, key: str) -> Iterator[Journal]:
    """Open the journal of a search for the output `out`, whose directory exists.

    The block is to end once the output stands. Then the journal is removed, and also where a gate cannot
    hold; whatever else ends the block (Ctrl-C, a full disk) leaves it for the next call with the same `key`.
    Journals of other keys are removed after a week.
    """
    prefix = f".{out.name}.onnxkit-search-"
    journal = Journal(out.parent / f"{prefix}{key}.jsonl")
    for other in out.parent.glob(f"{_escaped(prefix)}*.jsonl"):
        with suppress(OSError):
            if other != journal.path and time.time() - other.lstat().st_mtime > _STALE_SECONDS:
                other.unlink()
    try:
        yield journal
    except GateFailed:
        journal.path.unlink(missing_ok=True)
        raise
    journal.path.unlink(missing_ok=True)


def search_key(model_digest: str, options: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """A digest of what a measurement depends on: 16 hexadecimal digits.

    Args:
        model_digest: `ModelDir.digest()` of the float model.
        options: those that change a variant or its figures; limits do not, and should be left out.
        data: digests of the samples by their use ("calibration", "eval").
    """
    plain = [__version__, model_digest, to_plain(options), dict(data)]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def plans_digest(plans: Plans) -> str:
    """A digest of plans: 16 hexadecimal digits; the order of layers does not matter."""
    plain = {
        component: {
            name: {"is": type(each).__name__, **dataclasses.asdict(each)} for name, each in plan.items()
        }
        for component, plan in plans.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Quality]:
    found: dict[str, Quality] = {}
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = json.loads(line)
            found[str(entry["plans"])] = Quality.from_plain(entry["quality"])
    return found


def _escaped(text: str) -> str:
    """The text as a pattern of `glob` that matches itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


__all__ = ["Journal", "journal_beside", "plans_digest", "search_key"]
