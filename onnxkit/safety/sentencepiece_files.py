"""SentencePiece models (`source.spm`, `sentencepiece.bpe.model`): the pieces and how text is normalized.

A protobuf message (sentencepiece_model.proto), read field by field; what is not needed is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxkit.errors import InputError
from onnxkit.safety.paths import regular_file

MAX_BYTES = 64 * 1024 * 1024

Field = tuple[int, int | bytes]
"""Number of a field and its value: an integer, or bytes (of fixed width or with a length)."""

_KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user", 5: "unused", 6: "byte"}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of the vocabulary.

    Attributes:
        text: with U+2581 for a space.
        score: its log-probability, or minus its rank among merges.
        kind: "normal", "unknown", "control", "user", "unused" or "byte".
    """

    text: str
    score: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class SentencePieces:
    """A model.

    Attributes:
        pieces: by id.
        algorithm: how a text is cut into pieces.
        charsmap: the compiled character normalization, possibly empty.
        leading_space: whether a space is put before a text.
        joins_spaces: whether spaces at the ends and repeated ones are dropped.
    """

    pieces: tuple[Piece, ...]
    algorithm: Literal["unigram", "bpe"]
    charsmap: bytes
    leading_space: bool
    joins_spaces: bool


def read_sentencepiece(path: Path) -> SentencePieces:
    """Read a model.

    Raises:
        InputError: missing, too large, damaged, or of an algorithm other than unigram and BPE.
    """
    size = regular_file(path).st_size
    if size > MAX_BYTES:
        raise InputError(f"{path}: {size} bytes of SentencePiece model; at most {MAX_BYTES} are read")
    try:
        return _model(path.read_bytes(), path)
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(f"{path}: not a readable SentencePiece model: {error}") from error


def _model(data: bytes, path: Path) -> SentencePieces:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    algorithm = trainer.get(3, 1)
    if algorithm not in (1, 2) or not pieces:
        raise InputError(f"{path}: a SentencePiece model of words or characters is not supported")
    charsmap = normalizer.get(2, b"")
    return SentencePieces(
        pieces=tuple(pieces),
        algorithm="unigram" if algorithm == 1 else "bpe",
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        leading_space=normalizer.get(3, 1) == 1,
        joins_spaces=normalizer.get(4, 1) == 1,
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("a piece without text or score")
    return Piece(
        text=text.decode("utf-8"), score=struct.unpack("<f", score)[0], kind=_KINDS.get(int(kind), "")
    )


def _fields(data: bytes) -> Iterator[Field]:
    """Yield the fields of a message (protobuf wire format: 0 varint, 1 fixed64, 2 length, 5 fixed32)."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        if wire == 2:
            length, place = _varint(data, place)
        else:
            length = 8 if wire == 1 else 4
        if length > len(data) - place:
            raise ValueError("it ends too early")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
