"""Continuous batching: rows leave when they are finished, and waiting prompts take their place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxkit.generate.budget import Budget, rows_of, rows_that_fit
from onnxkit.generate.decoder import Batch, Decoder
from onnxkit.generate.encoder import Encoder
from onnxkit.generate.groups import Group, Move, group_of
from onnxkit.generate.logits import Logits, Tokens
from onnxkit.generate.request import Completion, Request
from onnxkit.generate.waiting import Waiting

Finished = tuple[int, Completion]

# Requests that wait, for each row of the batch: enough to find some of about equal length.
_WINDOW = 4
# Limits of one joint prefill: tokens, and bytes of its logits where the graph computes them all.
_PREFILL_TOKENS = 2048
_LOGITS_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a running batch may grow to: `rows` rows, and `slots` slots that were counted in."""

    rows: int
    slots: int


class Schedule:
    """The running batch and its groups. One is made for each call of `Engine.generate`.

    Behind an encoder the rows of a batch have equally long prefixes and no mask, so none can join:
    such a batch runs to its end, without its finished rows.
    """

    def __init__(
        self,
        decoder: Decoder,
        encoder: Encoder | None,
        budget: Budget,
        *,
        batch_size: int,
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        """Start with nothing running; `batch_size` is the most rows (a single request may take more)."""
        self._decoder = decoder
        self._encoder = encoder
        self._budget = budget
        self._batch_size = batch_size
        self._on_token = on_token
        self._batch: Batch | None = None
        self._room = Room(rows=0, slots=0)
        self._groups: list[Group] = []
        self._tokens = np.zeros(0, np.int64)

    def run(self, requests: Iterable[Request]) -> Iterator[Finished]:
        """Yield (position, completion) of each request, as they finish.

        Raises:
            InputError: a prompt that is empty or fills the context, encoder inputs that do not fit.
            ResourceError: a request does not fit into memory.
        """
        waiting = Waiting(
            requests,
            first=self._batch_size,
            window=_WINDOW * self._batch_size,
            prefill_tokens=self._prefill_tokens(),
        )
        while True:
            while waiting and (rows := self._free_rows(waiting.oldest)):
                taken = waiting.take(rows)
                yield from self._admit(taken, alone=not waiting)
            if self._batch is None:
                return
            yield from self._advance(self._batch)

    def _prefill_tokens(self) -> int:
        if self._decoder.roles.keep:
            return _PREFILL_TOKENS
        return max(1, min(_PREFILL_TOKENS, _LOGITS_BYTES // (4 * self._decoder.vocabulary)))

    def _free_rows(self, request: Request) -> int:
        """Return how many rows may join now if `request` does; 0: it has to wait.

        Raises:
            ResourceError: not even the request alone fits into memory.
        """
        new = self._budget.new_tokens(request)
        slots = len(request.prompt) + new
        if self._batch is None:
            self._budget.check(request, new)
            fitting = rows_that_fit(self._budget.row_bytes(request, new))
            rows = max(rows_of(request), min(self._batch_size, fitting))
            self._room = Room(rows=rows, slots=slots)
            return rows
        free = self._room.rows - self._batch.rows
        if self._encoder is not None or free < rows_of(request):
            return 0
        return free if self._grows_to(slots) else 0

    def _grows_to(self, slots: int) -> bool:
        """Count the slots in, if the whole batch fits into memory with them."""
        more = slots - self._room.slots
        if more > 0:
            if rows_that_fit(self._room.rows * more * self._budget.slot_bytes) < 1:
                return False
            self._room = Room(rows=self._room.rows, slots=slots)
        return True

    def _admit(self, taken: Sequence[tuple[int, Request]], *, alone: bool) -> Iterator[Finished]:
        """Prefill requests apart, choose their first tokens, and let the rows that go on join.

        `alone`: no others wait, so that no room for more rows is announced.
        """
        started = time.perf_counter()
        groups = [self._group(index, request, started) for index, request in taken]
        requests = [request for _, request in taken]
        cross = self._encoder.run([request.encoder for request in requests]) if self._encoder else None
        prompts = [request.prompt for request in requests]
        if self._batch is None:
            announced = (sum(map(rows_of, requests)) if alone else self._room.rows, self._room.slots)
        else:
            announced = (len(prompts), max(len(prompt) for prompt in prompts))
        batch, logits = self._decoder.prefill(prompts, announced=announced, cross=cross)
        going, tokens = yield from self._moved(groups, batch, logits)
        if not going:
            return
        if self._batch is None:
            self._batch, self._groups, self._tokens = batch, going, tokens
        else:
            self._batch.join(batch)
            self._groups = [*self._groups, *going]
            self._tokens = np.concatenate([self._tokens, tokens])

    def _advance(self, batch: Batch) -> Iterator[Finished]:
        logits = batch.step(self._tokens)
        self._groups, self._tokens = yield from self._moved(self._groups, batch, logits)
        if not self._groups:
            self._batch = None

    def _moved(
        self, groups: Sequence[Group], batch: Batch, logits: Logits
    ) -> Generator[Finished, None, tuple[list[Group], Tokens]]:
        """Let every group choose, yield what is finished, and move the rows of `batch`.

        Returns the groups that go on, in the order of their rows, and their tokens.
        """
        moves: list[tuple[Group, Move]] = []
        first = 0
        for group in groups:
            rows = group.rows
            move = group.advance(logits[first : first + rows])
            moves.append((group, Move(parents=move.parents + first, tokens=move.tokens)))
            first += rows
        going = _without_holes(moves)
        if going:
            parents = np.concatenate([move.parents for _, move in going])
            if not np.array_equal(parents, np.arange(batch.rows)):
                batch.select(parents)
        for group, move in moves:
            if not len(move.tokens):
                yield group.index, group.completion()
        tokens = [move.tokens for _, move in going]
        return [group for group, _ in going], np.concatenate(tokens) if tokens else np.zeros(0, np.int64)

    def _group(self, index: int, request: Request, started: float) -> Group:
        new = self._budget.new_tokens(request)
        slots = max(self._room.slots, len(request.prompt) + new)
        self._room = Room(rows=self._room.rows, slots=slots)
        return group_of(
            index,
            request,
            vocabulary=self._decoder.vocabulary,
            budget=new,
            started=started,
            on_token=self._on_token,
        )


def _without_holes(moves: Sequence[tuple[Group, Move]]) -> list[tuple[Group, Move]]:
    """Return the groups that go on; the last one takes the place of one that ended, so that few rows move."""
    left = deque(position for position, (_, move) in enumerate(moves) if len(move.tokens))
    order: list[int] = []
    while left:
        order.append(left.popleft() if left[0] == len(order) else left.pop())
    return [moves[position] for position in order]
