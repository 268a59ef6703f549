"""From tokens to text as they come: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxkit.tasks.tokenizer import TokenizerSetup

Decode = Callable[[Sequence[int]], str]

_BROKEN = "\ufffd"
_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What transformers' clean_up_tokenization replaces, in its order."""


class TokenStream:
    r"""Turns tokens into pieces of text, whose concatenation is the text of all of them.

    A piece is what a few tokens decode to beyond what the ones before them do: so spaces at the start of
    a word, which decoders drop at the start of a text, and characters of several tokens come out right.
    A text that ends in U+FFFD waits for more tokens: it may be half a character. (One exception: decoders
    of byte tokens break a whole run of them when one is wrong; characters shown by then stay shown.)
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        """Start after `context`, ids whose text is not given out."""
        self._decode = decode
        self._tokens = list(context)
        self._start = 0  # tokens[start:] are decoded together …
        self._said = len(context)  # … of which tokens[start:said] have been given out

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now, often empty."""
        self._tokens.append(token)
        piece = self._piece()
        if not piece or piece.endswith(_BROKEN):
            return ""
        self._start, self._said = self._said, len(self._tokens)
        return piece

    def flush(self) -> str:
        """Return what is left at the end: characters that were never completed."""
        piece = self._piece()
        self._start = self._said = len(self._tokens)
        return piece

    def _piece(self) -> str:
        before = self._decode(self._tokens[self._start : self._said])
        now = self._decode(self._tokens[self._start :])
        return now[len(before) :]


class StopStrings:
    """Texts that end a sequence, wherever in a token they begin and end. False where there are none.

    Attributes:
        texts: the texts, each once; empty ones are left out.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(dict.fromkeys(text for text in texts if text))

    def __bool__(self) -> bool:
        return bool(self.texts)

    def find(self, text: str) -> int | None:
        """Return where the first of them begins in `text`, None where none is in it."""
        found = [place for stop in self.texts if (place := text.find(stop)) >= 0]
        return min(found, default=None)

    def cut(self, text: str) -> str:
        """Return `text` up to the first of them."""
        return text[: self.find(text)]

    def held(self, text: str) -> int:
        """Return how many characters at the end of `text` may be the beginning of one."""
        longest = 0
        for stop in self.texts:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class TextStream:
    """A sequence's text as it comes, up to its first stop string; also the engine's stop check.

    Attributes:
        stopped: whether a stop string was met; nothing is said after it.
    """

    def __init__(self, tokens: TokenStream, stops: StopStrings) -> None:
        self._tokens = tokens
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> bool:
        """Take the engine's next token; return whether a stop string is complete with it."""
        self.text(token)
        return self.stopped

    def text(self, token: int) -> str:
        """Take a token; return the text that can be shown now."""
        return self._take(self._tokens.push(token))

    def flush(self) -> str:
        """Return what is left at the end of the sequence."""
        said = self._take(self._tokens.flush())
        left = "" if self.stopped else self._held
        self._held = ""
        return said + left

    def _take(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        place = self._stops.find(text)
        if place is not None:
            self.stopped, self._held = True, ""
            return text[:place]
        keep = len(text) - self._stops.held(text)
        self._held = text[keep:]
        return text[:keep]


def decoder_of(setup: TokenizerSetup) -> Decode:
    """Return the function that turns ids into text as transformers' `decode(skip_special_tokens=True)`.

    Spaces are cleaned up where tokenizer_config.json says so, but for byte pairs, whose spaces mean
    something.
    """
    tokenizer = setup.tokenizer

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    if not setup.clean_up_spaces or type(tokenizer.model).__name__ == "BPE":
        return decode
    return lambda ids: _cleaned(decode(ids))


def _cleaned(text: str) -> str:
    for old, new in _CLEAN_UP:
        text = text.replace(old, new)
    return text
