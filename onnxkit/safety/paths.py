"""Paths that come from foreign files, and directories that other tools wrote."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.text import printable

_MAX_ENTRIES = 20_000


def contained(root: Path, name: str) -> Path:
    """Return `root / name` for a relative `name` that stays inside `root`, also through symlinks.

    The file need not exist. A symlink may lead to the same Hub cache repository.

    Raises:
        UnsafeError: `name` is empty, absolute, has a NUL, a backslash or a `..`, or resolves outside.
    """
    if not name or "\0" in name:
        raise UnsafeError(f"refused the file name {_shown(name)} in {root}: empty, or with a NUL in it")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or PureWindowsPath(name).drive or "\\" in name or ".." in parts or not parts:
        raise UnsafeError(f"refused the file name {_shown(name)}: it must be relative and stay inside {root}")
    target = root / name
    if not _inside(target, root):
        raise UnsafeError(f"refused {_shown(name)}: it is a link that leads out of {root}")
    return target


def linked(root: Path, path: Path) -> bool:
    """Say whether `path`, or a directory between it and `root`, is a symlink."""
    steps = [path, *path.parents]
    return any(step.is_symlink() for step in steps[: len(path.parts) - len(root.parts)])


def path_kind(path: Path) -> Literal["file", "directory", "other", "missing"]:
    """Say what is at `path`, links followed; what cannot be asked (a name too long) is missing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "missing"
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "other"


def regular_file(path: Path, what: str = "file") -> os.stat_result:
    """Return the status of `path`.

    Raises:
        InputError: it is missing, not readable, a directory, or a device, pipe or socket.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{_shown(str(path))}: no such {what} ({_reason(error)})") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{_shown(str(path))} is a directory, not a {what}")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{_shown(str(path))} is no regular file (a device, pipe or socket)")
    return status


def check_directory(path: Path) -> None:
    """Check that a model directory holds regular files only, and no symlink that leads out.

    A symlink may resolve inside the directory or inside the same Hub cache repository. Hidden
    directories (`.git`, `.cache`) are never read by onnxkit and are passed over.

    Raises:
        InputError: it is no directory, cannot be listed, or holds far too many entries for a model.
        UnsafeError: a device, pipe or socket, or a symlink out.
    """
    if not path.is_dir():
        raise InputError(f"{_shown(str(path))} is no directory")
    waiting, seen = [path], 0
    while waiting:
        for entry in _entries(waiting.pop()):
            seen += 1
            if seen > _MAX_ENTRIES:
                raise InputError(f"{path} holds more than {_MAX_ENTRIES} files: this is no model directory")
            _check_entry(entry, path)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                waiting.append(Path(entry.path))


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"cannot list {_shown(str(directory))}: {_reason(error)}") from error


def _check_entry(entry: os.DirEntry[str], root: Path) -> None:
    if entry.is_symlink():
        if not _inside(Path(entry.path), root):
            raise UnsafeError(
                f"refused {_shown(entry.path)}: a link that leads out of {root}; copy the file there instead"
            )
    elif not (entry.is_file() or entry.is_dir()):
        raise UnsafeError(f"refused {_shown(entry.path)}: a device, pipe or socket in a model directory")


def _inside(path: Path, root: Path) -> bool:
    try:
        resolved, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    if resolved.is_relative_to(home):
        return True
    cache = _hub_repository(home)
    return cache is not None and resolved.is_relative_to(cache / "blobs")


def _hub_repository(path: Path) -> Path | None:
    """Return the Hub cache repository (`models--org--name`) whose `snapshots` hold `path`, if any."""
    for parent in path.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith(("models--", "datasets--")):
            return parent.parent
    return None


def _shown(name: str) -> str:
    return printable(name, limit=300)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
