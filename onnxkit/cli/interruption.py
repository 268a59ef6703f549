"""SIGINT and SIGTERM as exceptions that do not get lost.

A signal's exception rises wherever the main thread happens to be. Inside a library's callback from C it may
be swallowed there, and the work would go on as if nobody had asked it to stop; so it is remembered, and
raised again at the next word of progress.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM, as an exception so that what was half done is cleaned up."""


_pending: type[BaseException] | None = None


def install() -> None:
    """Raise the signals of this process, but those that its parent wants ignored (nohup, `&`)."""
    _handle(_on_signal)


def at_once(code: int | None = None) -> None:
    """Let them end the process where it stands: before there is anything to clean up, and when all is said.

    Args:
        code: to exit with; None: that of the signal.
    """
    _handle(lambda number, _: os._exit(128 + number if code is None else code))


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def check() -> None:
    """Raise again what was asked for and got lost."""
    if _pending is not None:
        raise _pending


def forget() -> None:
    """Start afresh: what comes next was not asked to stop."""
    global _pending
    _pending = None


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be known, through the function that is yielded; a second one raises."""
    count = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            _on_signal(number, frame)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def raised() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C raise as everywhere; what is yielded says no."""
    yield lambda: False


def _on_signal(number: int, _frame: FrameType | None) -> None:
    global _pending
    if number == signal.SIGTERM:  # a second one must not interrupt the cleaning up
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _pending = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    raise _pending
