"""How long an output may be: what was asked for, the model's context, and the memory that is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxkit.artifact.configuration import decoder_positions, input_positions, reading_part, text_part
from onnxkit.errors import InputError, ResourceError, UsageError
from onnxkit.generate.request import Request
from onnxkit.machine import memory

DEFAULT_NEW_TOKENS = 256

# Their positions are relative or slopes: config.json says what they were trained with, no more.
_UNLIMITED = frozenset({"t5", "mt5", "umt5", "longt5", "bloom", "mpt"})
# Encoders of waveforms make frames of 20 ms or more: at 8 kHz or more at least so many samples.
_SAMPLES_A_FRAME = 160
# What must stay free: the runtime's own working memory, and other processes.
_SHARE = 0.9


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens of a decoder's sequence by its config.json; None where nothing limits it."""
    return None if text_part(config).get("model_type") in _UNLIMITED else decoder_positions(config)


def encoder_limit(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that an encoder reads by its config.json; None where nothing limits it."""
    return None if reading_part(config).get("model_type") in _UNLIMITED else input_positions(config)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a model can hold.

    Attributes:
        limit: the most tokens of a sequence of the decoder, or None.
        slot_bytes: bytes that one token of one row takes in the decoder's cache.
        encoder_slot_bytes: the same for one position of the encoder.
        logits_bytes: bytes that the logits of one row take.
    """

    limit: int | None
    slot_bytes: int
    encoder_slot_bytes: int
    logits_bytes: int

    def new_tokens(self, request: Request) -> int:
        """Return the most new tokens of each of the request's sequences, >= 1.

        What is asked for is cut to what the context leaves; without being asked, 256 or what fits.

        Raises:
            UsageError: no tokens are asked for.
            InputError: the prompt is empty, or fills the context.
        """
        prompt = len(request.prompt)
        if prompt < 1:
            raise InputError("the prompt is empty: give at least one token")
        room = None if self.limit is None else self.limit - prompt
        if room is not None and room < 1:
            raise InputError(
                f"the prompt has {prompt} tokens and the model's context {self.limit}, no room for an "
                "answer: shorten the prompt"
            )
        wanted = request.options.wanted_new_tokens(prompt)
        if wanted is not None and wanted < 1:
            raise UsageError(f"--max-new-tokens {wanted}: at least 1")
        if wanted is None:
            fixed = self.row_bytes(request, 0)
            fits = (_free() // rows_of(request) - fixed) // max(1, self.slot_bytes)
            wanted = max(1, min(DEFAULT_NEW_TOKENS, fits))
        return wanted if room is None else min(wanted, room)

    def row_bytes(self, request: Request, new_tokens: int) -> int:
        """Return the bytes that one sequence of the request takes at its end."""
        slots = len(request.prompt) + new_tokens
        return slots * self.slot_bytes + _positions(request) * self.encoder_slot_bytes + self.logits_bytes

    def check_tokens(self, count: int) -> None:
        """Raise ResourceError unless the keys and values of `count` tokens fit into the free memory."""
        check_text(count * self.slot_bytes, f"the keys and values of {count} tokens")

    def check(self, request: Request, new_tokens: int, *, held: int = 0) -> None:
        """Raise ResourceError unless the request, alone, fits into the memory that is free now.

        `held` is the number of tokens whose keys and values are there already.
        """
        rows = rows_of(request)
        needed, free = rows * self.row_bytes(request, new_tokens), _free() + held * self.slot_bytes
        if needed > free:
            several = f" for {rows} sequences at once" if rows > 1 else ""
            option = "--num-beams, --num-return-sequences or " if rows > 1 else ""
            raise ResourceError(
                f"the keys and values of {len(request.prompt)} + {new_tokens} tokens{several} take "
                f"{_size(needed)} ({_size(self.slot_bytes)} a token), {_size(free)} are free: lower "
                f"{option}--max-new-tokens, or shorten the prompt"
            )


def check_text(needed: int, what: str) -> None:
    """Raise ResourceError unless what a text needs, in bytes, fits into the free memory."""
    free = _free()
    if needed > free:
        raise ResourceError(f"{what} take {_size(needed)}, {_size(free)} are free: take a shorter text")


def rows_of(request: Request) -> int:
    """Return how many rows a request takes while it runs."""
    return max(request.options.num_beams, request.options.num_return_sequences)


def rows_that_fit(row_bytes: int) -> int:
    """Return how many rows of that size fit into the memory that is free now."""
    return _free() // max(1, row_bytes)


def _positions(request: Request) -> int:
    """Return (at most) how many positions the encoder makes of the request's input."""
    waves = request.encoder.get("input_values")
    if waves is not None and waves.ndim == 1:
        return -(-len(waves) // _SAMPLES_A_FRAME)
    return max((max(array.shape) for array in request.encoder.values()), default=0)


def _free() -> int:
    return int(memory().available_bytes * _SHARE)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
