"""The object that stages report progress to. The default shows nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger("onnxkit")


class Progress:
    """Receives what a stage has to say while it works.

    Library users get this class: silent, warnings go to the logger `onnxkit`. The command line
    hands down a subclass that draws on the terminal.
    """

    def note(self, text: str) -> None:
        """State a fact before or while working: an effective setting, the stage now running."""

    def warn(self, text: str) -> None:
        """Say what the user should know although the work goes on."""
        _log.warning(text)

    def track(self, items: Iterable[T], *, total: int | None, text: str) -> Iterator[T]:
        """Yield `items`, showing how many of `total` have passed."""
        yield from items
