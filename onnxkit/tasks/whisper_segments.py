"""From the tokens of a window to timed segments, and to where the next window begins."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of a transcript.

    Attributes:
        start_s: where it starts in the recording, in seconds.
        end_s: where it ends.
        tokens: its ids, timestamps included.
    """

    start_s: float
    end_s: float
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """How timestamps and frames measure time.

    Attributes:
        begin: the id of `<|0.00|>`.
        step_s: seconds from timestamp to timestamp (0.02).
        stride: frames from timestamp to timestamp (2).
    """

    begin: int
    step_s: float
    stride: int


def split(tokens: Sequence[int], clock: Clock, *, seek: int, frames: int) -> tuple[list[Segment], int]:
    """Return the segments of a window, and how many frames the next window starts later.

    As OpenAI's `transcribe` and transformers' long-form generation: two timestamps in a row end one
    segment and begin the next; what follows the last pair is thrown away and read again, from there on,
    in the next window, because the window cut it; a single timestamp at the end says that nothing
    follows. Without a pair the window is one segment.

    Args:
        tokens: the ids of the window without end-of-text.
        clock: how they measure time.
        seek: the window's first frame in the recording.
        frames: frames of the window that hold sound.
    """
    offset = seek * clock.step_s / clock.stride
    stamps = [token >= clock.begin for token in tokens]
    cuts = [i + 1 for i in range(len(tokens) - 1) if stamps[i] and stamps[i + 1]]
    if not cuts:
        return [_whole(tokens, clock, offset, frames)], frames
    finished = stamps[-2:] == [False, True]
    if finished:
        cuts.append(len(tokens))
    else:
        cuts[-1] += 1  # the last segment keeps both timestamps: so transformers tells that it was no end
    segments = []
    start = 0
    for cut in cuts:
        piece = tuple(tokens[start:cut])
        last = piece[-1] if finished or cut != cuts[-1] else piece[-2]
        begins, ends = (offset + (stamp - clock.begin) * clock.step_s for stamp in (piece[0], last))
        segments.append(Segment(start_s=begins, end_s=ends, tokens=piece))
        start = cut
    return segments, frames if finished else (tokens[start - 2] - clock.begin) * clock.stride


def compression_ratio(tokens: Sequence[int], vocabulary: int) -> float:
    """Return bytes of the ids over their bytes after zlib: high where a transcript repeats itself.

    Measured on ids, as transformers does; OpenAI's code measures text. 0.0 for no tokens.
    """
    width = int(math.log2(vocabulary) / 8) + 1
    raw = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(raw) / len(zlib.compress(raw))


def _whole(tokens: Sequence[int], clock: Clock, offset: float, frames: int) -> Segment:
    stamps = [token for token in tokens if token >= clock.begin]
    steps = frames // clock.stride
    if stamps and stamps[-1] != clock.begin:
        steps = stamps[-1] - clock.begin
    return Segment(start_s=offset, end_s=offset + steps * clock.step_s, tokens=tuple(tokens))
