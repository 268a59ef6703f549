"""Staging directories: how they are named, and which of them a killed run has left behind.

A name says whose it is: `.<output>.onnxkit-<host>-<pid>-<random>`, or `…onnxkit-old-…` for an
output that was set aside.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

# Nothing that onnxkit does takes a day; a pid may be another process's by then, or another host's.
_MAX_AGE_SECONDS = 24 * 3600.0
_NAME = re.compile(r"\.onnxkit-(?P<old>old-)?(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}")

_live: set[Path] = set()


def staging_name(target: Path) -> Path:
    """Return a fresh name beside `target` for what will take its place."""
    return target.parent / _name(target, "")


def create(staging: Path) -> None:
    """Make a staging directory, with the modes that the umask asks for."""
    _live.add(staging)
    staging.mkdir(mode=0o777)


def release(staging: Path) -> None:
    """Forget a staging directory: it was published, removed or never made."""
    _live.discard(staging)


def aside_name(target: Path) -> Path:
    """Return a fresh name beside `target` for the output that is about to be replaced."""
    return target.parent / _name(target, "old-")


def reap(target: Path) -> None:
    """Remove what killed runs left beside `target`; give back an output that was set aside."""
    prefix = f".{target.name}"
    for entry in target.parent.iterdir():
        match = _NAME.fullmatch(entry.name.removeprefix(prefix)) if entry.name.startswith(prefix) else None
        if match is None or entry.is_symlink() or not _abandoned(entry, match):
            continue
        if match["old"] and not target.exists():
            # Killed between two renames: this is the only copy.
            with suppress(OSError):
                entry.rename(target)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _name(target: Path, kind: str) -> str:
    return f".{target.name}.onnxkit-{kind}{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _abandoned(entry: Path, match: re.Match[str]) -> bool:
    """By owner, or by age where the owner cannot be asked."""
    pid = int(match["pid"])
    if match["host"] == _host():
        if pid == os.getpid():
            return entry not in _live and not match["old"]
        if not _alive(pid):
            return True
    return time.time() - _newest(entry) > _MAX_AGE_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _newest(entry: Path) -> float:
    times = [entry.stat().st_mtime]
    with suppress(OSError):
        times.extend(path.lstat().st_mtime for path in entry.rglob("*"))
    return max(times)
