"""A window's text as it comes, without what the next window reads again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxkit.tasks.detokenizer import StopStrings, TextStream, TokenStream


class SegmentStream(TextStream):
    """Says a segment when it is complete: with the second timestamp of a pair, or with the window's end."""

    def __init__(self, decode: Callable[[Sequence[int]], str], begin: int) -> None:
        """Decode text with `decode`; ids from `begin` on are timestamps."""
        super().__init__(TokenStream(decode), StopStrings(()))
        self._decode = decode
        self._begin = begin
        self._segment: list[int] = []
        self._paired = False

    def text(self, token: int) -> str:
        """Take a token; return the segment that it completes, else nothing."""
        if token >= self._begin and self._segment and self._segment[-1] >= self._begin:
            said = self._decode(self._segment)
            self._segment, self._paired = [token], True
            return said
        self._segment.append(token)
        return ""

    def flush(self) -> str:
        """Return the last segment, unless the window cut it: then the next window reads it again."""
        stamps = [one >= self._begin for one in self._segment[-2:]]
        cut = self._paired and stamps != [False, True]
        said = "" if cut else self._decode(self._segment)
        self._segment, self._paired = [], False
        return said
