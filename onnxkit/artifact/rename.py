"""Puts a directory in place in one atomic step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# Linux, <linux/fs.h> and renameat2(2).
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def place_new(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`, which must not exist (an empty directory counts as existing).

    Raises:
        FileExistsError: it does.
        OSError: whatever else the system says.
    """
    if _renameat2(staging, out, _RENAME_NOREPLACE):
        return
    if out.exists() or out.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
    staging.rename(out)


def exchange(staging: Path, out: Path, aside: Path) -> Path:
    """Put `staging` in the place of the existing directory `out`; return where the old one now is.

    Where the system can, in one step: a reader sees the old directory or the new one. Else the old one
    is renamed to `aside` first, and back if the second rename fails.

    Raises:
        OSError: whatever the system says; `out` is then as it was.
    """
    if _renameat2(staging, out, _RENAME_EXCHANGE):
        return staging
    out.rename(aside)
    try:
        staging.rename(out)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rename(out)
        raise
    return aside


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Rename with `flag`; False where the system or the file system does not know it."""
    call = _function()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(old), None, str(new))


@cache
def _function() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # glibc before 2.28
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    call: Callable[..., int] = function
    return call
