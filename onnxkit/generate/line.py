"""One sequence while it is made: chooses its next token and knows when it ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxkit.generate.logits import Logits, Processors, Tokens, constrained, processors
from onnxkit.generate.request import FinishReason, Request, Sequence
from onnxkit.generate.sampling import choose, generator, log_softmax


class Line:
    """A sequence: its prompt, its new tokens, and what decides about the next.

    Attributes:
        tokens: the new tokens so far, without the end-of-sequence token.
        finished: why it ended, or None.
        chosen: how many tokens were chosen (with the end-of-sequence token).
    """

    def __init__(
        self,
        request: Request,
        *,
        vocabulary: int,
        budget: int,
        number: int = 0,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """Begin after the prompt.

        Args:
            request: what to continue, and how.
            vocabulary: size of the logits.
            budget: the most new tokens, >= 1.
            number: position among the sequences of the request (seeds the random numbers).
            on_token: is called with each token that counts, as it is chosen.
        """
        self.tokens: list[int] = []
        self.finished: FinishReason | None = None
        self.chosen = 0
        self.budget = budget
        self._options = request.options
        self._prompt = len(request.prompt)
        self._history = np.empty(self._prompt + budget, np.int64)
        self._history[: self._prompt] = request.prompt
        self._process = line_processors(request, vocabulary=vocabulary, budget=budget)
        self._rule = request.rule
        self._rng = generator(request.options.seed, number)
        self._stop = request.stop() if request.stop else None
        self._constraint = request.constraint() if request.constraint else None
        self._score: float | None = 0.0 if request.log_probabilities else None
        self._on_token = on_token

    @property
    def history(self) -> Tokens:
        """Prompt and new tokens, int64 [n]; a view."""
        return self._history[: self._prompt + len(self.tokens)]

    @property
    def room(self) -> int:
        """Tokens that may still be chosen."""
        return self.budget - len(self.tokens)

    def advance(self, logits: Logits) -> int:
        """Choose the next token by float32 [vocabulary], take it and return it; `finished` tells the rest."""
        if self._rule is not None:
            logits = self._rule(self.history[self._prompt :], logits)
        token = choose(self._scores(logits), self._options, self._rng)
        if self._score is not None:
            self._score += float(log_softmax(logits)[token])
        self._take(token)
        return token

    def result(self) -> Sequence:
        """Return what came of it."""
        return Sequence(tokens=tuple(self.tokens), finish_reason=self.finished or "length", score=self._score)

    def _scores(self, logits: Logits) -> Logits:
        processed = self._process(self.history, logits)
        if self._constraint is not None:
            return constrained(logits, processed, self._constraint.mask(self.room))
        return processed

    def _take(self, token: int) -> None:
        self.chosen += 1
        if token in self._options.eos_token_ids:
            self.finished = "stop"
            return
        self._history[self._prompt + len(self.tokens)] = token
        self.tokens.append(token)
        if self._on_token is not None:
            self._on_token(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        stopped = self._stop is not None and self._stop.push(token)
        if stopped or (self._constraint is not None and self._constraint.finished):
            self.finished = "stop"
        elif len(self.tokens) >= self.budget:
            complete = self._constraint is not None and self._constraint.complete
            self.finished = "stop" if complete else "length"


def line_processors(request: Request, *, vocabulary: int, budget: int) -> Processors:
    """Return the logits steps of a request's sequences."""
    return processors(
        request.options,
        vocabulary=vocabulary,
        prompt_length=len(request.prompt),
        max_new_tokens=budget,
        read=request.encoder.get("input_ids") if request.encoder else request.prompt,
    )
