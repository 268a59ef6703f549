"""One row whose cache follows a token history: for conversations, drafts and speculation."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from onnxkit.errors import UsageError
from onnxkit.generate.budget import Budget, rows_of
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.encoder import Cross
from onnxkit.generate.line import Line
from onnxkit.generate.logits import Logits, Tokens
from onnxkit.generate.request import Completion, GenerationStats, Request
from onnxkit.generate.speculation import LengthPolicy, Proposer


class SingleRow:
    """A row and the ids that its cache stands for. An interruption at any moment leaves it usable."""

    def __init__(self, decoder: Decoder, *, announced: int, cross: Cross | None = None) -> None:
        """Start empty; `announced` is the most tokens that will probably be needed."""
        self._batch = decoder.batch(1, announced=(1, announced), cross=cross)
        self._ids = np.zeros(announced, np.int64)

    @property
    def length(self) -> int:
        """Tokens whose keys and values are there."""
        return self._batch.used

    def follow(self, history: Tokens) -> tuple[Logits, int]:
        """Compute what of `history` (int64 [n], n >= 1) is not there yet, after the common beginning.

        Returns:
            the logits after it, float32 [vocabulary], and how many tokens were there already.
        """
        common = min(self.length, len(history) - 1)
        differing = np.flatnonzero(self._ids[:common] != history[:common])
        known = int(differing[0]) if len(differing) else common
        self.truncate(known)
        return self.append(history[known:])[-1], known

    def append(self, ids: Tokens, *, keep: int = 1) -> Logits:
        """Append int64 [n]; return the last `keep` logits, float32 [keep, vocabulary]."""
        end = self.length + len(ids)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(end, np.int64)])
        self._ids[self.length : end] = ids
        return self._batch.extend(ids, keep=keep)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self._batch.truncate(length)


class Speculation:
    """Guesses tokens, has them checked, and counts.

    Attributes:
        proposed: tokens that were guessed; `accepted`: those that were right.
    """

    def __init__(self, proposer: Proposer) -> None:
        """Count from zero."""
        self._proposer = proposer
        self._policy = LengthPolicy()
        self.proposed = self.accepted = 0

    def push(self, token: int) -> None:
        """Tell the proposer the next token."""
        self._proposer.push(token)

    def propose(self, most: int) -> list[int]:
        """Return guesses, no more than `most` or than pays."""
        count = min(self._policy.length(), most)
        return self._proposer.propose(count) if count > 0 else []

    def record(self, proposed: int, accepted: int, seconds: float) -> None:
        """Learn from a run that took `seconds`, guessing included."""
        self._policy.record(proposed, accepted)
        self._policy.timed(proposed, seconds)
        self.proposed += proposed
        self.accepted += accepted


def answer(
    row: SingleRow,
    request: Request,
    *,
    vocabulary: int,
    budget: Budget,
    proposer: Callable[[Tokens], Proposer] | None,
    on_token: Callable[[int], None] | None,
) -> Completion:
    """Continue `request.prompt` in `row`, which may know its beginning already.

    With a proposer (made for a history) several tokens are computed at once; which are taken is
    decided as without it, token by token, so that the result is the same, sampled ones included (up to
    logits that are closer than the rounding of a run of several tokens).

    Raises:
        UsageError: the request wants several sequences.
        InputError, ResourceError: as `Budget.new_tokens` and `Budget.check`.
    """
    if rows_of(request) > 1:
        raise UsageError(
            "speculation and conversations make one sequence: --num-beams and --num-return-sequences "
            "do not apply"
        )
    started = time.perf_counter()
    new_tokens = budget.new_tokens(request)
    budget.check(request, new_tokens, held=row.length)
    line = Line(request, vocabulary=vocabulary, budget=new_tokens, on_token=on_token)
    logits, known = row.follow(request.prompt)
    token = line.advance(logits)
    first_token_s = time.perf_counter() - started
    # What is written often stands in the encoder's input already.
    source = request.encoder.get("input_ids", line.history[:0])
    known_text = np.concatenate([source, line.history[:-1]])
    speculation = Speculation(proposer(known_text)) if proposer and not line.finished else None
    steps = 0
    while line.finished is None:
        token = _step(row, line, token, speculation)
        steps += 1
    stats = GenerationStats(
        first_token_s=first_token_s,
        seconds=time.perf_counter() - started,
        new_tokens=len(line.tokens),
        prefilled_tokens=len(request.prompt) - known,
        cached_tokens=known,
        steps=steps,
        proposed=speculation.proposed if speculation else 0,
        accepted=speculation.accepted if speculation else 0,
    )
    return Completion(sequences=(line.result(),), prompt_tokens=len(request.prompt), stats=stats)


def _step(row: SingleRow, line: Line, token: int, speculation: Speculation | None) -> int:
    """Run the decoder once, after `token`; return the last token that this led to."""
    started = time.perf_counter()
    guesses: list[int] = []
    if speculation is not None:
        speculation.push(token)
        guesses = speculation.propose(line.room - 1)
    length = row.length
    logits = row.append(np.array([token, *guesses], np.int64), keep=1 + len(guesses))
    token, right = line.advance(logits[0]), 0
    for guess, after in zip(guesses, logits[1:], strict=True):
        if line.finished is not None or token != guess:
            break
        if speculation is not None:
            speculation.push(token)
        right += 1
        token = line.advance(after)
    row.truncate(length + 1 + right)
    if speculation is not None:
        speculation.record(len(guesses), right, time.perf_counter() - started)
    return token
