"""Guesses of what comes next, which one run of the model then checks: proposals and how long they should be.

The engine compares each guess with the token that it would have chosen anyway: the output is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Proposer(Protocol):
    """Guesses how one sequence goes on."""

    def push(self, token: int) -> None:
        """Take the next token of the sequence (accepted ones only)."""
        ...

    def propose(self, count: int) -> list[int]:
        """Return at most `count` guesses of the next tokens; empty where there is none."""
        ...


class NgramProposer:
    """Prompt lookup: what followed the last time that the text ended as it does now.

    The longest known ending counts, of `longest` to `shortest` tokens, and its latest occurrence. Both
    methods take constant time: an index remembers, for each n-gram, where it was last and the time before.
    """

    def __init__(self, history: Iterable[int] = (), *, longest: int = 4, shortest: int = 2) -> None:
        self._tokens: list[int] = []
        self._sizes = range(longest, shortest - 1, -1)
        self._last: dict[int, int] = {}
        self._before: dict[int, int] = {}
        for token in history:
            self.push(token)

    def push(self, token: int) -> None:
        """Take the next token of the sequence."""
        self._tokens.append(token)
        end = len(self._tokens)
        for size in self._sizes:
            if size <= end:
                key = self._key(size)
                if key in self._last:
                    self._before[key] = self._last[key]
                self._last[key] = end

    def propose(self, count: int) -> list[int]:
        """Return at most `count` tokens that followed the longest known ending; empty where none is known."""
        for size in self._sizes:
            if size <= len(self._tokens):
                place = self._before.get(self._key(size))
                if place is not None:
                    return self._continuation(place, count)
        return []

    def _continuation(self, place: int, count: int) -> list[int]:
        # A period shorter than `count` goes on round: the guess runs into itself.
        found = self._tokens[place : place + count]
        while len(found) < count:
            found += found[: count - len(found)]
        return found

    def _key(self, size: int) -> int:
        key = size
        for token in self._tokens[-size:]:
            key = key << 32 | token
        return key


class LengthPolicy:
    """How many tokens to guess, from how many were right and what checking one more costs.

    With a share a of right guesses, k guesses give (1 - a^(k+1)) / (1 - a) tokens a run
    (Leviathan et al., https://arxiv.org/abs/2211.17192), which costs 1 + k * `marginal`
    plain runs. The k with the most tokens per cost is taken, 0 where guessing does not pay; then
    one guess is tried now and again, in case that changes.
    """

    _MEMORY = 0.9  # weight of the past, a run
    _RETRY = 24  # runs without a guess until the next try

    def __init__(self, *, most: int = 8, marginal: float = 0.15) -> None:
        """`marginal` is what a guess costs (drafting and checking it) in plain runs; `timed` corrects it."""
        self._most = most
        self._marginal = marginal
        self._right = 1.5
        self._tried = 2.0
        self._idle = 0
        self._plain: float | None = None

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were right, of those whose predecessors were."""
        return min(self._right / self._tried, 0.99)

    def length(self) -> int:
        """Return how many tokens to guess in the next run, from 0 to `most`; call it once a run."""
        best = max(range(self._most + 1), key=self._gain)
        if best:
            self._idle = 0
            return best
        self._idle += 1
        if self._idle % self._RETRY:
            return 0
        return min(2, self._most)

    def record(self, proposed: int, accepted: int) -> None:
        """Learn from a run that checked `proposed` guesses, of which the first `accepted` were right."""
        if proposed:
            self._right = self._MEMORY * self._right + accepted
            self._tried = self._MEMORY * self._tried + min(accepted + 1, proposed)

    def timed(self, proposed: int, seconds: float) -> None:
        """Learn what a run with `proposed` guesses took, their drafting counted, in seconds."""
        if proposed == 0:
            self._plain = seconds if self._plain is None else 0.8 * self._plain + 0.2 * seconds
        elif self._plain:
            marginal = max(0.0, seconds / self._plain - 1) / proposed
            self._marginal = 0.8 * self._marginal + 0.2 * marginal

    def _gain(self, guesses: int) -> float:
        share = self.acceptance
        return (1 - share ** (guesses + 1)) / (1 - share) / (1 + guesses * self._marginal)
