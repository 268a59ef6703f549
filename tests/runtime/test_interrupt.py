"""The wake-up descriptor: taken for a run, given back, shared with an event loop."""

from __future__ import annotations

import signal
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from onnxkit.runtime.interrupt import terminable
from tests.patience import WAIT_S, comes_true


@pytest.fixture
def ignored() -> Any:
    """Handle SIGUSR1 and SIGINT in Python, without any effect."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_only_an_interrupt_terminates(ignored: Any) -> None:
    run = SimpleNamespace(terminate=False)
    with terminable(run):
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0.05)
        assert not run.terminate
        signal.raise_signal(signal.SIGINT)
        assert comes_true(lambda: run.terminate)


def test_after_the_run_nothing_is_terminated(ignored: Any) -> None:
    run = SimpleNamespace(terminate=False)
    with terminable(run):
        pass
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.05)
    assert not run.terminate
    assert signal.set_wakeup_fd(-1) == -1


def test_an_event_loop_gets_its_signals_and_its_descriptor_back(ignored: Any) -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    try:
        with terminable(SimpleNamespace(terminate=False)):
            signal.raise_signal(signal.SIGUSR1)
            reader.settimeout(WAIT_S)
            assert reader.recv(1) == bytes([signal.SIGUSR1])
    finally:
        assert signal.set_wakeup_fd(-1) == writer.fileno()
        reader.close()
        writer.close()


def test_other_threads_run_without_it() -> None:
    seen: list[int] = []

    def work() -> None:
        with terminable(SimpleNamespace(terminate=False)):
            seen.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1]


def test_threads_do_not_pile_up() -> None:
    for _ in range(20):
        with terminable(SimpleNamespace(terminate=False)):
            pass
    assert sum(thread.name == "onnxkit-interrupt" for thread in threading.enumerate()) == 1
