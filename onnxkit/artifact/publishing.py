"""Publishing an output, a directory or a file: whole or not at all, never over what may not be replaced."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxkit.artifact import leftovers
from onnxkit.artifact.manifest import MANIFEST_NAME, Manifest
from onnxkit.artifact.rename import exchange, place_new
from onnxkit.errors import InputError, OnnxkitError, ResourceError, UnsafeError, UsageError
from onnxkit.safety import printable, read_json_value

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_WRONG_NAME = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextmanager
def publish(out: str | Path, *, overwrite: bool, need_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty directory to write into; put it in `out`'s place when the block ends well.

    The directory stands beside `out`, on the same file system. At the end every file is flushed to the
    disk and the directory takes `out`'s name in one step. Whatever ends the block early (also
    Ctrl-C) removes it and leaves `out` as it was. What killed runs left beside `out` is removed first.

    Args:
        out: the output directory; missing parents are made (and removed again on failure).
        overwrite: replace an existing model directory of ours, or an empty directory.
        need_bytes: free space that must be there before the work starts.

    Raises:
        UsageError: `out` exists without `overwrite`, or is no model directory of ours.
        UnsafeError: `out` is a symlink.
        ResourceError: no space, read-only, no permission.
    """
    target = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a symlink in its place
    check_target(target, overwrite=overwrite)
    made = _make_parents(target.parent)
    staging = leftovers.staging_name(target)  # known before it is there: Ctrl-C may come in between
    try:
        with _disk_errors(target):
            leftovers.reap(target)
            _check_space(target.parent, need_bytes)
            leftovers.create(staging)
            yield staging
            _finish(staging)
            _put_in_place(staging, target, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        leftovers.release(staging)


def check_target(out: str | Path, *, overwrite: bool) -> None:
    """Raise what `publish` would raise for `out`, before any work is done.

    Raises:
        UsageError: it exists without `overwrite`, or is neither a model directory of ours nor empty.
        UnsafeError: it is a symlink.
    """
    target = Path(out)
    shown = printable(str(target), limit=300)
    try:
        linked = target.is_symlink()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise UsageError(f"the output {shown} is no usable path") from error
    if linked:
        raise UnsafeError(f"{shown} is a symlink; name the directory itself as the output")
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"the output {shown} exists and is no directory; name another")
    if not overwrite:
        raise UsageError(f"the output {shown} exists; pass --overwrite to replace it, or name another")
    strange = _not_ours(target)
    if strange:
        raise UsageError(
            f"--overwrite would delete {shown}, which {strange}; remove it yourself or name another"
        )


@contextmanager
def publish_file(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the path of a file to write; it takes the place of the file `out` when the block ends well.

    Raises:
        UsageError: as `check_file`.
        ResourceError: no space, read-only, no permission.
    """
    check_file(out, overwrite=overwrite)
    staging = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with _disk_errors(out):
            yield staging
            _flush(staging)
            staging.replace(out)
    finally:
        with suppress(OSError):
            staging.unlink()


def check_file(out: Path, *, overwrite: bool) -> None:
    """Raise what `publish_file` would raise for `out`, before any work is done.

    Raises:
        UsageError: it exists without `overwrite` or is a directory, or there is no directory for it.
    """
    shown = printable(str(out), limit=300)
    if out.is_dir():
        raise UsageError(f"the output {shown} is a directory; name a file")
    if out.exists() and not overwrite:
        raise UsageError(f"the output {shown} exists; pass --overwrite to replace it, or name another")
    if not out.parent.is_dir():
        raise UsageError(f"the output {shown}: there is no directory {printable(str(out.parent), limit=300)}")


def check_apart(source: str | Path, out: str | Path) -> None:
    """Refuse an output that is its input, lies inside it, or holds it.

    Raises:
        UsageError: so it is.
    """
    one, other = Path(source).resolve(), Path(out).resolve()
    if one.is_file():
        one = one.parent if other == one.parent else one
    if one == other or other.is_relative_to(one) or one.is_relative_to(other):
        raise UsageError(
            f"the output {printable(str(out), limit=300)} is, holds or lies inside the input "
            f"{printable(str(source), limit=300)}; stages change nothing in place: name another"
        )


def _not_ours(target: Path) -> str:
    """Say why a directory may not be deleted, or return an empty text."""
    if not any(target.iterdir()):
        return ""
    if not (target / MANIFEST_NAME).is_file():
        return f"onnxkit did not write (no {MANIFEST_NAME})"
    try:
        manifest = Manifest.from_plain(read_json_value(target / MANIFEST_NAME))
    except InputError:
        return f"has a damaged {MANIFEST_NAME}"
    known = {*manifest.files, MANIFEST_NAME}
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            return f"holds {printable(name, limit=80)}, which is no part of the model"
    return ""


def _make_parents(parent: Path) -> list[Path]:
    """Make missing parents; return those that were made, innermost first."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        shown = printable(str(parent), limit=300)
        kind = UsageError if error.errno in _WRONG_NAME else ResourceError
        raise kind(f"cannot make the directory {shown}: {error.strerror}; name another place") from error
    return missing


def _check_space(parent: Path, need_bytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if need_bytes > free:
        raise ResourceError(
            f"{printable(str(parent), limit=300)} has {free // 10**6:,} MB free, the output needs about "
            f"{math.ceil(need_bytes / 1e6):,} MB; free some or name another place"
        )


def _finish(staging: Path) -> None:
    """Give files the modes that the umask asks for, and flush files and directories to the disk."""
    # Some writers make files 0600; the staging directory itself was made under the umask.
    mode = staging.stat().st_mode & 0o666
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ResourceError(f"{path.name}: only plain files can be published")
        if path.is_file():
            path.chmod(mode)
        _flush(path)
    _flush(staging)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(staging: Path, target: Path, *, overwrite: bool) -> None:
    check_target(target, overwrite=overwrite)  # again: it may have appeared meanwhile
    if target.exists():
        old = exchange(staging, target, leftovers.aside_name(target))
        shutil.rmtree(old, ignore_errors=True)
    else:
        try:
            place_new(staging, target)
        except FileExistsError as error:
            raise UsageError(f"the output {target} appeared meanwhile; nothing was replaced") from error
    _flush(target.parent)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn what a full or read-only disk says into ResourceError."""
    try:
        yield
    except OnnxkitError:
        raise
    except OSError as error:
        shown = printable(str(target), limit=300)
        if error.errno in _FULL:
            raise ResourceError(f"the disk is full while writing {shown}; nothing was published") from error
        if error.errno in _READ_ONLY and _concerns(error, target.parent):
            raise ResourceError(f"cannot write {shown}: {error.strerror}; name another place") from error
        if error.errno in _WRONG_NAME and _concerns(error, target.parent):
            raise UsageError(f"cannot make {shown}: {error.strerror}") from error
        raise


def _concerns(error: OSError, place: Path) -> bool:
    """Say whether the error is about the output (a read of an input may lack permission, too)."""
    name = error.filename
    if name is None or isinstance(name, int):
        return True
    path = Path(os.fsdecode(name))
    return path.is_relative_to(place) or place.is_relative_to(path)
