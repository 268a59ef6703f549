"""Tokens that a command line names by their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxkit.errors import UsageError, suggestion

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


def _advice(setup: TokenizerSetup, token: str) -> str:
    special = [one.content for one in setup.tokenizer.get_added_tokens_decoder().values()]
    if not special:
        return "its tokenizer has no special tokens; --stop takes a text"
    return f"{suggestion(token, special)} (--stop takes a text)"
