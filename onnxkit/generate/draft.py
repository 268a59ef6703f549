"""Speculation by a smaller model: it writes ahead, the large one checks."""

from __future__ import annotations

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.generate.budget import context_limit
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.logits import Tokens
from onnxkit.generate.single import SingleRow
from onnxkit.runtime import RuntimeOptions


class Draft:
    """A loaded draft model. Make one with `Draft.open`; call it to get a proposer for a history."""

    def __init__(self, decoder: Decoder, limit: int | None) -> None:
        """`limit` is the draft's own context: beyond it, it proposes nothing."""
        self._decoder = decoder
        self._limit = limit

    @classmethod
    def open(cls, model: ModelDir, runtime: RuntimeOptions) -> Draft:
        """Load the draft model.

        Its ids must mean the same as the large model's, which whoever knows the tokenizers checks; with
        others it guesses wrong, and the output is the same all the same.

        Raises:
            InputError: no decoder with a cache, or one behind an encoder.
        """
        return cls(Decoder.open(model.model_file, runtime, model.config), context_limit(model.config))

    def __call__(self, history: Tokens) -> DraftProposer:
        """Return a proposer for a sequence that begins with int64 [n]."""
        return DraftProposer(self._decoder, history, self._limit)


class DraftProposer:
    """Proposes the draft model's own best tokens."""

    def __init__(self, decoder: Decoder, history: Tokens, limit: int | None) -> None:
        """Compute nothing yet."""
        self._row = SingleRow(decoder, announced=2 * len(history))
        self._vocabulary = decoder.vocabulary
        self._known = bool((history < decoder.vocabulary).all())
        self._limit = limit
        self._tokens = np.zeros(2 * len(history) + 1, np.int64)
        self._tokens[: len(history)] = history
        self._length = len(history)

    def push(self, token: int) -> None:
        """Take the next token of the sequence."""
        self._known = self._known and token < self._vocabulary
        if self._length == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._tokens[self._length] = token
        self._length += 1

    def propose(self, count: int) -> list[int]:
        """Return the `count` tokens that the draft model would write.

        Fewer at the end of its context, none after a token that it does not know (vocabularies
        may be padded to different sizes).
        """
        if self._limit is not None:
            count = min(count, self._limit - self._length)
        if count < 1 or not self._known:
            return []
        logits, _ = self._row.follow(self._tokens[: self._length])
        guesses = [int(logits.argmax())]
        while len(guesses) < count:
            logits = self._row.append(np.array(guesses[-1:], np.int64))[-1]
            guesses.append(int(logits.argmax()))
        return guesses
