"""Seconds by phase of an export."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

ORDER = ("import", "load", "trace", "convert", "write", "verify")


class Phases:
    """Adds up wall seconds under names; a phase within another counts for itself only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(ORDER, 0.0)
        self._inner = [0.0]

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time as `name`'s."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
            self._inner[-1] += spent

    def total(self, *, without: str = "") -> float:
        """Seconds of all phases but one."""
        return sum(seconds for name, seconds in self.seconds.items() if name != without)
