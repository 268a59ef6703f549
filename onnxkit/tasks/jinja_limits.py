"""How much a foreign template may do: so many steps, texts of such a length, no wide formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_STEPS = 300_000
"""Rounds of loops, calls and operators of one rendering; a thousand messages take some ten thousand."""
MAX_CHARACTERS = 8 * 1024 * 1024
"""Longest text, in a variable or as the result."""

_MAX_WIDTH = 10_000
_WIDTHS = re.compile(r"\d{5,}")
_WIDE_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_LARGE_NUMBER = 1e9


class LimitError(Exception):
    """A template wants more than it may have."""


class Budget:
    """What one rendering has used.

    Attributes:
        steps: rounds of loops, calls and operators so far.
    """

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        """Count one step."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps")

    def through(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield what a loop goes through, a step each."""
        for item in items:
            self.step()
            yield item

    def before_call(self, function: Any, values: Iterable[Any]) -> None:
        """Look at a call before it is made: methods of texts can make long ones of short ones."""
        self.step()
        function = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        values = list(values)
        if not isinstance(owner, str):
            return
        if name in _WIDE_METHODS:
            check_widths(values)
        elif name in ("format", "format_map"):
            check_format(owner, values)
        elif name == "join":
            measured(
                [owner * 0, *values, *([owner] * len(values[0]) if values and _sized(values[0]) else [])]
            )
        elif name == "replace" and len(values) > 1:
            check_replace(owner, values[0], values[1])

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Look at `+`, `*`, `**` or `%` before it is computed."""
        self.step()
        if operator == "%" and isinstance(left, str):
            check_format(left, [right])
        elif operator == "*" and (_sized(left) or _sized(right)):
            count, item = (left, right) if _sized(right) else (right, left)
            if isinstance(count, int) and count * deep_length(item) > MAX_CHARACTERS:
                raise LimitError("it repeats a text or a list too often")
        elif operator in ("*", "**") and max(_magnitude(left), _magnitude(right)) > _LARGE_NUMBER:
            raise LimitError("it computes with too large numbers")
        elif operator == "**" and _magnitude(right) > 1000:
            raise LimitError("it raises to too high a power")


def measured(value: Any) -> Any:
    """Return a value whose text is not too long.

    Raises:
        LimitError: it is.
    """
    check_length(deep_length(value))
    return value


def check_length(length: int) -> None:
    """Refuse a text that is too long."""
    if length > MAX_CHARACTERS:
        raise LimitError(f"it makes a text of more than {MAX_CHARACTERS:,} characters")


def deep_length(value: Any) -> int:
    """Return about how long a value's text is; counting ends above the limit."""
    total, waiting = 0, [value]
    while waiting and total <= MAX_CHARACTERS:
        one = waiting.pop()
        total += len(one) + 1 if isinstance(one, str) else 1
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            waiting += one
    return total


def check_format(text: str, values: Iterable[Any]) -> None:
    """Refuse a format string with a large width, or values that are too long together."""
    if len(text) < _MAX_WIDTH and _WIDTHS.search(text):
        raise LimitError(f"it makes texts wider than {_MAX_WIDTH:,} characters")
    check_widths(values)
    measured([text, *values, *values] if len(text) < _MAX_WIDTH else text)


def check_replace(text: str, old: Any, new: Any) -> None:
    """Refuse a replacement whose result is too long."""
    check_length(len(text) + text.count(str(old)) * len(str(new)))


def check_widths(values: Iterable[Any]) -> None:
    """Refuse large numbers where they are the width of a text."""
    if any(_magnitude(value) > _MAX_WIDTH for value in values):
        raise LimitError(f"it makes texts wider than {_MAX_WIDTH:,} characters")


def _sized(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _magnitude(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else 0.0
