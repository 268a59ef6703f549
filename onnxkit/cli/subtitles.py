"""Transcripts as subtitle files: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxkit.errors import InputError

_LEAST_MS = 1


def subtitles(record: Mapping[str, Any], kind: str) -> str:
    """Return a whole subtitle file for a record of speech recognition with `segments`.

    A cue is at least 1 ms long, and its text one line.

    Args:
        record: has `segments`, each with `start_s`, `end_s` (seconds) and `text`.
        kind: a key of `FORMATS`.

    Raises:
        InputError: the record has no segments.
    """
    segments = record.get("segments")
    if segments is None:
        raise InputError("subtitles need timestamps, which this record does not have")
    cues = [_cue(segment) for segment in segments]
    return FORMATS[kind]([cue for cue in cues if cue[2]])


Cue = tuple[int, int, str]
"""Start and end in milliseconds, and the text in one line."""


def lines(record: Mapping[str, Any]) -> str:
    """Return a line a segment, with its times, for people: `[00:00:00.000 --> 00:00:02.500] Good morning.`"""
    cues = (_cue(segment) for segment in record["segments"])
    return "".join(f"[{_clock(start, '.')} --> {_clock(end, '.')}] {text}\n" for start, end, text in cues)


def _cue(segment: Mapping[str, Any]) -> Cue:
    start = max(round(segment["start_s"] * 1000), 0)
    end = max(round(segment["end_s"] * 1000), start + _LEAST_MS)
    return start, end, " ".join(segment["text"].split())


def _srt(cues: list[Cue]) -> str:
    """SubRip: numbered blocks, a comma before the milliseconds. "-->" in a text would look like a time."""
    blocks = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text.replace('-->', '->')}\n"
        for number, (start, end, text) in enumerate(cues, start=1)
    )
    return "\n".join(blocks)


def _vtt(cues: list[Cue]) -> str:
    """WebVTT (W3C): a header, cues, and &, < and > escaped."""
    blocks = (
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in cues
    )
    return "WEBVTT\n" + "".join(blocks)


FORMATS: Mapping[str, Callable[[list[Cue]], str]] = {"srt": _srt, "vtt": _vtt}
"""What `--subtitles` takes."""


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
