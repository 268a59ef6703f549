"""Tokens that a command line names by their text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxkit.errors import UsageError

if TYPE_CHECKING:
    from onnxkit.tasks.tokenizer import TokenizerSetup


def stop_token_ids(setup: TokenizerSetup, tokens: Sequence[str], *, where: str) -> tuple[int, ...]:
    """Return the ids of tokens by their text.

    Raises:
        UsageError: the vocabulary has no such token; the nearest ones are named.
    """
    ids = []
    for token in tokens:
        found = setup.tokenizer.token_to_id(token)
        if found is None:
            raise UsageError(f"--stop-token {token!r}: {where} has no such token; {_advice(setup, token)}")
        ids.append(found)
    return tuple(ids)


def nearest(word: str, known: Sequence[str], *, count: int = 3) -> str:
    """Return "did you mean …?" with the nearest of `known`, or those that there are."""
    near = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known[:20])}"


def _advice(setup: TokenizerSetup, token: str) -> str:
    special = [one.content for one in setup.tokenizer.get_added_tokens_decoder().values()]
    if not special:
        return "its tokenizer has no special tokens; --stop takes a text"
    return f"{nearest(token, special)} (--stop takes a text)"
