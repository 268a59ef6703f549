"""Requests that wait for a place in the batch."""

from __future__ import annotations

from collections.abc import Iterable

from onnxkit.errors import InputError, UsageError
from onnxkit.generate.budget import rows_of
from onnxkit.generate.decoder import CHUNK
from onnxkit.generate.request import Request

# Rows that differ by no more than this many tokens, or by a quarter, are prefilled together.
_NEAR_TOKENS = 16


class Waiting:
    """A window over a stream of requests, of which those go together that are about equally long."""

    def __init__(self, requests: Iterable[Request], *, first: int, window: int, prefill_tokens: int) -> None:
        """Read nothing yet.

        Args:
            requests: any number; `first` are read at first, then `window` wait at most.
            prefill_tokens: the most tokens of a joint prefill, padding included.
        """
        self._source = enumerate(requests)
        self._size = first
        self._window = window
        self._prefill_tokens = prefill_tokens
        self._held: list[tuple[int, Request]] = []
        self._ended = False

    def __bool__(self) -> bool:
        self._fill()
        return bool(self._held)

    @property
    def oldest(self) -> Request:
        """The request whose turn it is; there must be one (`bool`)."""
        return self._held[0][1]

    def take(self, rows: int) -> list[tuple[int, Request]]:
        """Return the oldest request and those like it, no more than `rows` rows together (but at least one).

        All prompts that stand before an encoder's output have the same length.
        """
        self._fill()
        first = self._held[0]
        taken, used, longest = [first], rows_of(first[1]), _length(first[1])
        like = sorted(self._held[1:], key=lambda item: abs(_length(item[1]) - _length(first[1])))
        for item in like:
            longer = max(longest, _length(item[1]))
            fits = used + rows_of(item[1]) <= rows and (len(taken) + 1) * longer <= self._prefill_tokens
            if fits and longer <= CHUNK and _alike(first[1], item[1]):
                taken.append(item)
                used, longest = used + rows_of(item[1]), longer
        self._held = [item for item in self._held if item not in taken]
        self._size = self._window
        return taken

    def _fill(self) -> None:
        while not self._ended and len(self._held) < self._size:
            item = next(self._source, None)
            if item is None:
                self._ended = True
            else:
                _check(*item)
                self._held.append(item)


def _check(index: int, request: Request) -> None:
    prompt = request.prompt
    if prompt.ndim != 1 or prompt.dtype.kind != "i":
        raise UsageError(f"request {index}: the prompt must be int64 [n], not {prompt.dtype} {prompt.shape}")
    if not prompt.size:
        raise InputError(f"request {index}: the prompt is empty")


def _length(request: Request) -> int:
    """Return the length that a joint run pads: the encoder's, or the prompt's."""
    return len(request.encoder["input_ids"]) if "input_ids" in request.encoder else len(request.prompt)


def _alike(one: Request, other: Request) -> bool:
    if one.encoder and len(one.prompt) != len(other.prompt):
        return False
    short, long = sorted((_length(one), _length(other)))
    return long - short <= max(_NEAR_TOKENS, long // 4)
