"""What stands in for a clock: the lines that a call executes, and waiting for what must come at last."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

WAIT_S = 120
"""How long a test waits for what must come, before it fails: it bounds a hang, and measures nothing."""


def lines_run(call: Callable[[], object], *, at_most: int = 5_000_000) -> int:
    """Count the lines of Python that `call` executes: how its work grows, whatever else the machine does.

    Raises:
        AssertionError: it executes more than `at_most`.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        if count > at_most:
            raise AssertionError(f"more than {at_most} lines")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def comes_true(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds, and return whether it did within `WAIT_S`."""
    end = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
