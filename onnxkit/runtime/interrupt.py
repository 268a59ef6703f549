"""Ends a running session on Ctrl-C.

Python delivers a signal between two bytecodes, and `session.run` is one: a run of minutes would
have to end first. But the interpreter writes the signal's number into the wake-up descriptor at
once (`signal.set_wakeup_fd`); one thread per process waits there and sets `RunOptions.terminate`,
which ONNX Runtime looks at before every node.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any


class _Watcher:
    """The thread behind the wake-up descriptor, and the run that it would end."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.current: Any = None
        self.previous = -1
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self.descriptor = self._writer.fileno()
        threading.Thread(target=self._watch, name="onnxkit-interrupt", daemon=True).start()

    def _watch(self) -> None:
        while numbers := self._reader.recv(64):
            run = self.current
            if run is not None and not {signal.SIGINT, signal.SIGTERM}.isdisjoint(numbers):
                run.terminate = True
            if self.previous >= 0:  # an event loop lives here: its signals must reach it as well
                with contextlib.suppress(OSError):
                    os.write(self.previous, numbers)


_watcher: _Watcher | None = None


@contextlib.contextmanager
def terminable(run_options: Any) -> Iterator[None]:
    """Let SIGINT and SIGTERM end a run that was given `run_options`, within one node's time.

    Works in the main thread, where Python handles signals, and while their handlers are Python's;
    elsewhere it does nothing.
    """
    global _watcher
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _watcher is None or _watcher.pid != os.getpid():  # after a fork the thread is gone
        _watcher = _Watcher()
    watcher = _watcher
    watcher.current = run_options
    watcher.previous = signal.set_wakeup_fd(watcher.descriptor, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(watcher.previous, warn_on_full_buffer=False)
        watcher.current = None
