"""Numbers with sensible digits, for people. 1 MB is 10^6 bytes, as disks and the Hub count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def digits(number: float | None, significant: int = 3) -> str:
    """Write a number with `significant` digits and no exponent between 1e-3 and 1e6; `-` for None."""
    if number is None:
        return "-"
    if number == 0:
        return "0"
    size = abs(number)
    if size < 1e-3 or size >= 1e6:
        return f"{number:.{significant - 1}e}"
    if size >= 10 ** (significant - 1):
        return f"{number:.0f}"
    return f"{number:#.{significant}g}".rstrip(".")


def size(count: int | None) -> str:
    """Write bytes as `22.6 MB`, `804 kB` or `17 bytes`."""
    if count is None:
        return "-"
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{digits(count / unit)} {name}"
    return f"{count} bytes"


def megabytes(count: int | None) -> str:
    """Write bytes as a number of MB, for a table whose heading names the unit; at least 0.01."""
    if count is None:
        return "-"
    return "<0.01" if 0 < count < 10_000 else digits(count / 10**6)


def exact_size(count: int) -> str:
    """Write bytes as `22.6 MB (22,613,201 bytes)`, which shows the base of the unit."""
    return f"{size(count)} ({count:,} bytes)" if count >= 1000 else size(count)


def milliseconds(value: float | None) -> str:
    """Write a time of milliseconds: `0.412 ms`, `17.3 ms`."""
    return "-" if value is None else f"{digits(value)} ms"


def seconds(value: float | None) -> str:
    """Write a time of seconds: `7.42 s`, `95 s`."""
    return "-" if value is None else f"{digits(value)} s"


def difference(value: float | None) -> str:
    """Write a relative difference: `3.2e-07`, `0` for equal bit by bit, `-` for not a number."""
    if value is None or value != value:
        return "-"
    return f"{value:.1e}" if value else "0"


def judged(worst: float, tolerance: float) -> str:
    """Write a relative difference beside what is allowed."""
    return f"worst difference {difference(worst)} of {tolerance:.0e} allowed"


def share(part: float, whole: float) -> str:
    """Write a part of a whole as percent; `-` where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def plural(count: int, noun: str) -> str:
    """Write `1 node`, `12 nodes`, `2 entries`."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def shape(dimensions: Iterable[Any]) -> str:
    """Write a shape as `batch_size x sequence_length x 384`; `scalar` for none, `?` for unknown."""
    return " x ".join("?" if each is None else str(each) for each in dimensions) or "scalar"


def placement(nodes: Mapping[str, int]) -> str:
    """Write how many nodes run where: `CPUExecutionProvider 71`."""
    return ", ".join(f"{provider} {count}" for provider, count in nodes.items())
