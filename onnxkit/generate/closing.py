"""A short way to the end of a sequence under a grammar, for when the budget of tokens runs out.

llguidance offers none. This one is greedy: it closes whatever can be closed and goes on with single
letters where nothing can, with blanks where no letter can. It is not the shortest, and may run in a
circle: digits that only a blank ends, say. Then the letters take turns, at last all of them; where that
does not end either, there is none.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_CLOSING = "\"}])>'"
_OPENING = "([{<\\,"
_BLANKS = " \n"


@dataclass(frozen=True, kw_only=True)
class Letters:
    """Tokens of one character each, by how they help to come to an end.

    Attributes:
        closing: those that end a text, a list, an object.
        other: the rest, those that open something last.
        blanks: a space and a newline.
    """

    closing: tuple[int, ...]
    other: tuple[int, ...]
    blanks: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: LLTokenizer) -> Letters:
        """Look them up in a vocabulary."""
        middle = [c for c in string.digits + string.ascii_letters + string.punctuation if c not in _OPENING]
        return cls(
            closing=_tokens(tokenizer, _CLOSING),
            other=_tokens(tokenizer, [c for c in middle if c not in _CLOSING] + list(_OPENING)),
            blanks=_tokens(tokenizer, _BLANKS),
        )


def way_out(matcher: LLMatcher, letters: Letters, most: int) -> list[int] | None:
    """Return at most `most` tokens after which the sequence is complete, empty where it is; None: not found.

    `matcher` stays as it is.
    """
    closing, other, blanks = letters.closing, letters.other, letters.blanks
    orders: tuple[tuple[tuple[int, ...], ...], ...] = (
        ((*closing, *other, *blanks), ()),
        (closing, (*other, *blanks)),
        ((), (*closing, *other, *blanks)),
    )
    ways = (_greedy_way(matcher, fixed, turning, most) for fixed, turning in orders)
    return next((way for way in ways if way is not None), None)


def _greedy_way(
    matcher: LLMatcher, fixed: Sequence[int], turning: Sequence[int], most: int
) -> list[int] | None:
    """The way by the first letter allowed: of `fixed`, then of `turning`, where it goes to the end."""
    state = matcher.deep_copy()
    turn = list(turning)
    way: list[int] = []
    while not state.is_accepting():
        following = state.compute_ff_tokens() or _next(state, fixed, turn)
        taken = following[: state.try_consume_tokens(following)]
        if not taken or len(way) + len(taken) > most:
            return None
        way += taken
    return way


def _next(state: LLMatcher, fixed: Sequence[int], turn: list[int]) -> list[int]:
    allowed = np.unpackbits(np.frombuffer(state.compute_bitmask(), dtype=np.uint8), bitorder="little")
    for token in (*fixed, *turn):
        if allowed[token]:
            if token in turn:  # not the same again and again: another letter may be what is waited for
                turn.remove(token)
                turn.append(token)
            return [token]
    return [int(token) for token in np.flatnonzero(allowed)[:1]]


def _tokens(tokenizer: LLTokenizer, characters: Sequence[str]) -> tuple[int, ...]:
    found = []
    for character in characters:
        tokens = tokenizer.greedy_tokenize(character)
        if len(tokens) == 1 and tokenizer.decode_bytes(tokens) == character.encode():
            found.append(tokens[0])
    return tuple(found)
