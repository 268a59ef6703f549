"""Beam search over one prompt: what to keep, when to end. It knows no model; see `BeamSearch`.

The rules are those of transformers' `GenerationMixin._beam_search`, in its float32 arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from onnxkit.generate.logits import Logits, Tokens, constrained
from onnxkit.generate.sampling import candidates, largest, log_softmax

if TYPE_CHECKING:
    from onnxkit.generate.constraint import Constraint
    from onnxkit.generate.options import GenerationOptions
    from onnxkit.generate.request import StopCheck

_NEVER = np.float32(-1e9)  # transformers' "not this one"; a sum of log-probabilities is far above it
_DEAD = np.float32(-1e8)


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A sequence that the search found.

    Attributes:
        tokens: the new tokens, without the end-of-sequence token.
        score: the sum of the log-probabilities (after processing) over length ** length_penalty.
        finish_reason: "stop": it ended by itself; "length": it was cut.
    """

    tokens: tuple[int, ...]
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class _Watch:
    """What follows one beam beside its tokens; copied where a beam branches."""

    stop: StopCheck | None
    constraint: Constraint | None

    def after(self, token: int, *, last: bool) -> tuple[_Watch, bool]:
        """Return the watch of this beam with `token` added, and whether the beam ends there by itself.

        `last`: it is cut there, which a constraint may find complete.
        """
        # StopCheck's state is replaced, never changed in place: a shallow copy is independent.
        stop = None if self.stop is None else copy.copy(self.stop)
        ends = stop is not None and stop.push(token)
        constraint = None if self.constraint is None else self.constraint.fork()
        if constraint is not None:
            constraint.accept(token)
            ends = ends or constraint.finished or (last and constraint.complete)
        return _Watch(stop, constraint), ends


class BeamSearch:
    """The beams of one prompt.

    The caller runs the model; `step` takes its logits for the next token of every beam. Then beam i continues
    beam `parents[i]` with `tokens[i]`: reorder the cache by `parents`, feed `tokens`, and so on until `done`.

    Attributes:
        parents: int64 [beams]
        tokens: int64 [beams]
        done: whether another step cannot or need not improve the result.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompt: Tokens,
        *,
        max_new_tokens: int,
        process: Callable[[Tokens, Logits], Logits],
        rng: np.random.Generator,
        stop: StopCheck | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Begin after `prompt`, int64 [n]; `rng` is used with `do_sample` only."""
        beams = options.num_beams
        self._options = options
        self._prompt = prompt.size
        self._most = max_new_tokens
        self._process = process
        self._rng = rng
        self._eos = np.array(options.eos_token_ids, dtype=np.int64)
        self._ids = np.empty((beams, prompt.size + max_new_tokens), dtype=np.int64)
        self._ids[:, : prompt.size] = prompt
        self._new = 0
        # Only the first beam counts at first: all are equal, and would all choose the same.
        self._scores = np.full(beams, _NEVER)
        self._scores[0] = 0
        self._watches = [_Watch(stop, constraint)] * beams
        self._found: list[Hypothesis] = []
        self._can_improve = True
        self.parents = np.zeros(beams, dtype=np.int64)
        self.tokens = np.zeros(beams, dtype=np.int64)
        self.done = False

    def history(self, beam: int) -> Tokens:
        """Return the ids of a running beam, prompt first, int64 [n]; valid until the next step."""
        return self._ids[beam, : self._prompt + self._new]

    def step(self, logits: Logits) -> None:
        """Go on by one token. `logits` float32 [beams, vocabulary]; after the prompt also [1, vocabulary]."""
        parents, tokens, scores = self._best(np.broadcast_to(logits, (self._scores.size, logits.shape[-1])))
        ends = np.isin(tokens, self._eos)
        watches = self._watched(parents, tokens, ends | (scores <= _DEAD), ends)
        hits = ends | self._last
        self._collect(parents, tokens, scores, ends, hits)
        self._go_on(parents, tokens, scores, hits, watches)
        self._new += 1
        self._judge(hits)

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """Return the best `num_return_sequences`, best first; fewer where a constraint left no more.

        Where none has ended (the caller stopped the search early), the best running beam, cut.
        """
        if self._found:
            return tuple(self._found[: self._options.num_return_sequences])
        tokens = tuple(map(int, self._ids[0, self._prompt : self._prompt + self._new]))
        return (Hypothesis(tokens=tokens, score=float(self._scores[0]), finish_reason="length"),)

    @property
    def _last(self) -> bool:
        return self._new + 1 == self._most

    def _best(self, logits: Logits) -> tuple[Tokens, Tokens, Logits]:
        """Return the continuations to look at, best (or first drawn) first: parents, tokens, scores.

        They are so many that enough of them have not ended.
        """
        beams = self._scores.size
        count = max(2, 1 + self._eos.size) * beams
        parents, tokens, scores = [], [], []
        found = 0
        for beam in range(beams):
            if self._scores[beam] <= _DEAD and found >= count:
                continue
            best, log_probabilities = self._continuations(beam, logits[beam], count)
            parents.append(np.full(best.size, beam))
            tokens.append(best)
            scores.append(log_probabilities + self._scores[beam])
            found += best.size
        if found < beams:  # a constraint left too few: dead beams fill up
            parents.append(np.zeros(beams - found, dtype=np.int64))
            tokens.append(np.full(beams - found, tokens[0][0]))
            scores.append(np.full(beams - found, -np.inf, dtype=np.float32))
        every = np.concatenate(scores)
        order = largest(self._noisy(every), count)
        return np.concatenate(parents)[order], np.concatenate(tokens)[order], every[order]

    def _continuations(self, beam: int, logits: Logits, count: int) -> tuple[Tokens, Logits]:
        """Return tokens that may follow a beam, the `count` best or all to draw from, and their scores."""
        options = self._options
        raw = log_softmax(logits)
        row = self._process(self.history(beam), raw)
        constraint = self._watches[beam].constraint
        if constraint is not None and self._scores[beam] > _DEAD:
            row = constrained(raw, row, constraint.mask(self._most - self._new))
        if options.do_sample:
            tokens, left = candidates(row, options, keep=max(1 + self._eos.size, 2))
            return tokens, log_softmax(left) if options.renormalize_logits else left
        if options.renormalize_logits:
            row = log_softmax(row)
        tokens = largest(row, count)
        return tokens, row[tokens]

    def _noisy(self, scores: Logits) -> Logits:
        if not self._options.do_sample:
            return scores
        # Gumbel top-k: the order of the noisy scores is that of drawing without replacement
        # (Kool et al., https://arxiv.org/abs/1903.06059).
        return scores + self._rng.gumbel(size=scores.size).astype(np.float32)

    def _watched(
        self, parents: Tokens, tokens: Tokens, idle: NDArray[np.bool_], ends: NDArray[np.bool_]
    ) -> list[_Watch]:
        """Return what follows each continuation, and mark in `ends` those that end with it.

        Those marked in `idle` are not looked at: they have ended, or cannot be.
        """
        watches = [self._watches[parent] for parent in parents]
        if watches[0].stop is None and watches[0].constraint is None:
            return watches
        for place in np.flatnonzero(~idle):
            watches[place], ends[place] = watches[place].after(int(tokens[place]), last=self._last)
        return watches

    def _collect(
        self,
        parents: Tokens,
        tokens: Tokens,
        scores: Logits,
        ends: NDArray[np.bool_],
        hits: NDArray[np.bool_],
    ) -> None:
        """Add the sequences that end now to the found ones, and keep the best of them."""
        beams = self._scores.size
        full = self._options.early_stopping is True and len(self._found) == beams
        if full or not self._can_improve:
            return
        # Only the best `beams` may end; the others were looked at so that enough go on.
        for place in np.flatnonzero(hits[:beams]):
            if scores[place] <= _DEAD:
                continue
            new = self._ids[parents[place], self._prompt : self._prompt + self._new].tolist()
            token = int(tokens[place])
            if token not in self._options.eos_token_ids:
                new.append(token)
            hypothesis = Hypothesis(
                tokens=tuple(new),
                score=float(scores[place] / np.float32((self._new + 1) ** self._options.length_penalty)),
                finish_reason="stop" if ends[place] else "length",
            )
            self._found.append(hypothesis)
        self._found = sorted(self._found, key=lambda found: -found.score)[:beams]

    def _go_on(
        self,
        parents: Tokens,
        tokens: Tokens,
        scores: Logits,
        hits: NDArray[np.bool_],
        watches: Sequence[_Watch],
    ) -> None:
        """Make the best continuations that have not ended the running beams."""
        scores = scores + np.where(hits, _NEVER, np.float32(0))
        chosen = largest(scores, self._scores.size)
        self.parents, self.tokens = parents[chosen], tokens[chosen]
        end = self._prompt + self._new
        self._ids[:, :end] = self._ids[self.parents, :end]
        self._ids[:, end] = self.tokens
        self._scores = scores[chosen]
        self._watches = [watches[place] for place in chosen]

    def _judge(self, hits: NDArray[np.bool_]) -> None:
        options = self._options
        hopeful = options.early_stopping == "never" and options.length_penalty > 0
        length = self._most if hopeful else self._new
        best = self._scores[0] / np.float32(length**options.length_penalty)
        full = len(self._found) == self._scores.size
        worst = np.float32(self._found[-1].score) if full else _NEVER
        self._can_improve = self._can_improve and bool(best > worst)
        full_is_enough = full and options.early_stopping is True
        self.done = not self._can_improve or full_is_enough or bool(hits.all())
