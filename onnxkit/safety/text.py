"""Names from foreign files, made safe to print."""

from __future__ import annotations

import unicodedata

# Bidi embeddings, overrides, isolates and marks: they reorder what a terminal shows
# (Unicode Standard Annex #9; CVE-2021-42574, "Trojan Source").
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(text: str, *, limit: int | None = None) -> str:
    """Return `text` with control, bidi, line-separator and surrogate characters escaped.

    The escapes are Python's (`\\x1b`, `\\u202e`). With `limit`, a longer result is cut to that many
    characters and ends in an ellipsis.
    """
    safe = "".join(_escape(char) if _unsafe(char) else char for char in text)
    if limit is not None and len(safe) > limit:
        return safe[: limit - 1] + "…"
    return safe


def _unsafe(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in _UNPRINTABLE


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
