"""Denormal numbers count as zero while a model runs.

What attention gives a masked position is a denormal (the exponential of a very negative score), and on Intel
CPUs a product with one is slow: a tenth (float32) to a fifth (int8) of a half-padded batch goes into those.
ONNX Runtime switches its own threads (`session.set_denormal_as_zero`). The calling thread computes too, and
belongs to the caller, whose own numbers may be denormal: it is switched for the run, and back.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import sys
from collections.abc import Iterator
from typing import Any

_SIZE, _MXCSR = (
    32,
    slice(28, 32),
)  # of C's fenv_t on x86-64 (glibc, musl), and where the SSE register is in it
_AS_ZERO = 0x8040  # results (FTZ) and operands (DAZ)


@contextlib.contextmanager
def float_state(*, denormals_as_zero: bool = False) -> Iterator[None]:
    """Give the calling thread its floating-point state back afterwards; other systems are left alone."""
    library = _library()
    if library is None:
        yield
        return
    before = ctypes.create_string_buffer(_SIZE)
    library.fegetenv(before)
    if denormals_as_zero:
        register = int.from_bytes(before.raw[_MXCSR], "little") | _AS_ZERO
        changed = before.raw[: _MXCSR.start] + register.to_bytes(4, "little")
        library.fesetenv(changed)
    try:
        yield
    finally:
        library.fesetenv(before)


@functools.cache
def _library() -> Any:
    """C's mathematical library, where the state is laid out as above."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.CDLL("libm.so.6")
    except OSError:
        return None
    return library


__all__ = ["float_state"]
