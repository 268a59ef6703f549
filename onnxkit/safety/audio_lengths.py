"""How much sound a file's header promises, where the file may have been cut short."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

# The least significant byte comes first in RIFF, last in RIFX (also wav) and FORM (aiff).
_BYTE_ORDERS = {b"RIFF": "<I", b"RIFX": ">I", b"FORM": ">I"}
_SOUND = (b"data", b"SSND")
# What writes into a pipe cannot know the length: it leaves 0, or about the most that fits, as sox does.
_UNKNOWN = 0x7F00_0000
_MOST_CHUNKS = 1_000
_FIRST_FRAME = 256
_HAS_FRAMES, _HAS_BYTES = 1, 2


def promised_share(path: Path) -> float:
    """Return how many times the sound that is there the header promises: 1.0 where nothing is missing.

    It is told of wav, aiff, au and mp3 (by its Xing or Info tag), whose decoders read what is there; of other
    formats it is 1.0.
    """
    with path.open("rb") as stream:
        try:
            promised, begin = _promised(stream)
        except struct.error:  # the header itself is cut
            return 1.0
        there = stream.seek(0, 2) - begin
    return promised / there if 0 < there < promised < _UNKNOWN else 1.0


def _promised(stream: BinaryIO) -> tuple[int, int]:
    """Return how many bytes of sound there should be, and where they begin; 0, 0 where that is not told."""
    kind = stream.read(4)
    if kind in _BYTE_ORDERS:
        return _of_chunks(stream, _BYTE_ORDERS[kind])
    if kind == b".snd":
        begin = _number(stream, ">I")
        return _number(stream, ">I"), begin
    if kind[:3] == b"ID3" or (kind[:1] == b"\xff" and kind[1:2] >= b"\xe0"):
        return _of_mp3(stream, tagged=kind[:3] == b"ID3")
    return 0, 0


def _of_chunks(stream: BinaryIO, order: str) -> tuple[int, int]:
    stream.seek(12)
    for _ in range(_MOST_CHUNKS):
        name = stream.read(4)
        size = _number(stream, order)
        if name in _SOUND:
            return size, stream.tell()
        stream.seek(size + size % 2, 1)  # chunks begin at even places
    return 0, 0


def _of_mp3(stream: BinaryIO, *, tagged: bool) -> tuple[int, int]:
    begin = 0
    if tagged:  # ID3v2: 7 bits of each byte of its size count
        stream.seek(6)
        begin = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(stream.read(4))))
    stream.seek(begin)
    frame = stream.read(_FIRST_FRAME)
    tag = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag < 0:
        return 0, 0
    stream.seek(begin + tag + 4)
    flags = _number(stream, ">I")
    if not flags & _HAS_BYTES:
        return 0, 0
    if flags & _HAS_FRAMES:
        _number(stream, ">I")
    return _number(stream, ">I"), begin


def _number(stream: BinaryIO, order: str) -> int:
    value: int = struct.unpack(order, stream.read(4))[0]
    return value
