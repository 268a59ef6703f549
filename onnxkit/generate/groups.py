"""The rows of a batch that belong to one request: its samples, or its beams."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxkit.generate.beams import BeamSearch
from onnxkit.generate.line import Line, line_processors
from onnxkit.generate.logits import Logits, Tokens
from onnxkit.generate.request import Completion, GenerationStats, Request, Sequence
from onnxkit.generate.sampling import generator


@dataclass(frozen=True, kw_only=True)
class Move:
    """What follows from a step's logits: row i continues row `parents[i]` with `tokens[i]`.

    Both int64; as many as the group has rows from now on, none when it is done.
    """

    parents: Tokens
    tokens: Tokens


class Group(ABC):
    """A request that is running. It begins with one row, that of its prompt.

    Attributes:
        index: position of the request.
        rows: rows that it has in the batch now.
    """

    def __init__(self, index: int, request: Request, started: float) -> None:
        """`started` is when the work for it began, before its prefill (`time.perf_counter()`)."""
        self.index = index
        self.request = request
        self.rows = 1
        self._steps = -1  # the prefill's logits are no step
        self._started = started
        self._first_token_s = 0.0

    def advance(self, logits: Logits) -> Move:
        """Take the logits of its rows, float32 [rows, vocabulary], and choose."""
        move = self._advance(logits)
        if self._steps < 0:
            self._first_token_s = time.perf_counter() - self._started
        self._steps += 1
        self.rows = len(move.tokens)
        return move

    def completion(self) -> Completion:
        """Return the answer; the group has no rows any more."""
        sequences = self._sequences()
        prompt = self.request.encoder.get("input_ids", self.request.prompt)
        stats = GenerationStats(
            first_token_s=self._first_token_s,
            seconds=time.perf_counter() - self._started,
            new_tokens=sum(len(sequence.tokens) for sequence in sequences),
            prefilled_tokens=len(self.request.prompt),
            steps=self._steps,
        )
        return Completion(sequences=sequences, prompt_tokens=len(prompt), stats=stats)

    @abstractmethod
    def _advance(self, logits: Logits) -> Move: ...

    @abstractmethod
    def _sequences(self) -> tuple[Sequence, ...]: ...


class Samples(Group):
    """Independent sequences of one prompt: greedy, or sampled `num_return_sequences` times."""

    def __init__(
        self,
        index: int,
        request: Request,
        *,
        vocabulary: int,
        budget: int,
        started: float,
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__(index, request, started)
        single = request.options.num_return_sequences == 1
        told = (lambda token: on_token(index, token)) if on_token and single else None
        self._lines = [
            Line(request, vocabulary=vocabulary, budget=budget, number=number, on_token=told)
            for number in range(request.options.num_return_sequences)
        ]
        self._live = self._lines

    def _advance(self, logits: Logits) -> Move:
        # After the prefill all sequences choose by the one row that the prompt has.
        sources = range(len(self._live)) if len(logits) == len(self._live) else [0] * len(self._live)
        taken = [
            (row, line.advance(logits[row]), line) for row, line in zip(sources, self._live, strict=True)
        ]
        going = [(row, token) for row, token, line in taken if line.finished is None]
        self._live = [line for line in self._live if line.finished is None]
        pairs = np.array(going, np.int64).reshape(-1, 2)
        return Move(parents=pairs[:, 0], tokens=pairs[:, 1])

    def _sequences(self) -> tuple[Sequence, ...]:
        return tuple(line.result() for line in self._lines)


class Beams(Group):
    """The beams of a prompt."""

    def __init__(self, index: int, request: Request, *, vocabulary: int, budget: int, started: float) -> None:
        super().__init__(index, request, started)
        self._search = BeamSearch(
            request.options,
            request.prompt,
            max_new_tokens=budget,
            process=_processors(request, vocabulary=vocabulary, budget=budget),
            rng=generator(request.options.seed),
            stop=request.stop() if request.stop else None,
            constraint=request.constraint() if request.constraint else None,
        )

    def _advance(self, logits: Logits) -> Move:
        search = self._search
        search.step(logits)
        if search.done:
            nothing = np.zeros(0, np.int64)
            return Move(parents=nothing, tokens=nothing)
        # After the prefill every beam stems from the one row that the prompt has.
        parents = search.parents if len(logits) > 1 else np.zeros_like(search.parents)
        return Move(parents=parents, tokens=search.tokens)

    def _sequences(self) -> tuple[Sequence, ...]:
        return tuple(
            Sequence(tokens=found.tokens, finish_reason=found.finish_reason, score=found.score)
            for found in self._search.hypotheses()
        )


def _processors(request: Request, *, vocabulary: int, budget: int) -> Callable[[Tokens, Logits], Logits]:
    """Return the steps of a beam: the request's rule first, on log-probabilities, as transformers does."""
    steps = line_processors(request, vocabulary=vocabulary, budget=budget)
    rule, prompt = request.rule, len(request.prompt)
    if rule is None:
        return steps
    return lambda history, scores: steps(history, rule(history[prompt:], scores))


def group_of(
    index: int,
    request: Request,
    *,
    vocabulary: int,
    budget: int,
    started: float,
    on_token: Callable[[int, int], None] | None,
) -> Group:
    """Return the group that answers `request`: beams where its options ask for several, else samples."""
    if request.options.num_beams > 1:
        return Beams(index, request, vocabulary=vocabulary, budget=budget, started=started)
    return Samples(index, request, vocabulary=vocabulary, budget=budget, started=started, on_token=on_token)
