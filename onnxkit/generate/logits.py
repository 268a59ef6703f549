"""What is done to the logits of the next token before one is chosen.

Each step equals transformers' LogitsProcessor of the same purpose, in transformers' order; the penalties of
presence and frequency are OpenAI's. Steps look at one sequence: a batch is processed row by row, so
every row may have its own options, and over a vocabulary of thousands of tokens one call over the whole batch
would save nothing. The filters of sampling (top-k and so on) are in `sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxkit.generate.options import GenerationOptions

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
Step = Callable[[Tokens, Logits], None]

_NEVER = np.float32(-np.inf)


class Processors:
    """The steps that one sequence's options ask for, ready to be called once a token.

    A call takes the sequence so far, int64 [n] without padding (prompt first; with an encoder the decoder's
    ids), and the logits of the next token, float32 [vocabulary] (log-probabilities in beam
    search), and returns the processed ones. The argument is never changed; without steps it is returned.
    Nothing is remembered between calls: beams may be exchanged and tokens taken back.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = tuple(steps)

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, history: Tokens, logits: Logits) -> Logits:
        """Return the processed logits, float32 [vocabulary]."""
        if not self._steps:
            return logits
        processed = logits.copy()
        # float32's limits, which remove_invalid_values puts in, may overflow to what they stand for.
        with np.errstate(over="ignore"):
            for step in self._steps:
                step(history, processed)
        return processed


def processors(
    options: GenerationOptions,
    *,
    vocabulary: int,
    prompt_length: int,
    max_new_tokens: int,
    read: Tokens | None = None,
) -> Processors:
    """Return the steps for one sequence.

    `max_new_tokens` is the length that holds after all bounds: it says when `forced_eos_token_ids` are due.
    `read` are the encoder's input ids, int64 [m] without padding, or without an encoder the prompt's; None
    where the encoder takes something else.
    """
    steps = _in_order(options, vocabulary, prompt_length, max_new_tokens, read)
    return Processors(step for step in steps if step is not None)


def _in_order(
    options: GenerationOptions, vocabulary: int, prompt: int, most: int, read: Tokens | None
) -> Iterator[Step | None]:
    # The order of GenerationMixin._get_logits_processor.
    eos = _within(options.eos_token_ids, vocabulary)
    least = options.least_new_tokens(prompt)
    bad_words = [
        ids for ids in options.bad_words_ids if ids not in [(token,) for token in options.eos_token_ids]
    ]
    decay = options.exponential_decay_length_penalty
    first = prompt if prompt > 1 or options.forced_bos_token_id is None else prompt + 1
    source = None if read is None else read[read < vocabulary]

    yield _bias(options.sequence_bias, vocabulary) if options.sequence_bias else None
    if source is not None and options.encoder_repetition_penalty != 1.0:
        yield _encoder_repetition(1 / options.encoder_repetition_penalty, source)
    yield _repetition(options.repetition_penalty) if options.repetition_penalty != 1.0 else None
    if options.presence_penalty or options.frequency_penalty:
        yield _presence_and_frequency(options.presence_penalty, options.frequency_penalty, prompt)
    yield _no_repeated_ngram(options.no_repeat_ngram_size) if options.no_repeat_ngram_size else None
    if source is not None and options.encoder_no_repeat_ngram_size:
        yield _no_ngram_of(source, options.encoder_no_repeat_ngram_size)
    yield _bias(((ids, -np.inf) for ids in bad_words), vocabulary) if bad_words else None
    yield _forbid(eos, lambda length: length < prompt + least) if least and eos.size else None
    if options.forced_bos_token_id is not None:
        yield _force(_within((options.forced_bos_token_id,), vocabulary), lambda length: length == 1)
    if options.forced_eos_token_ids:
        forced = _within(options.forced_eos_token_ids, vocabulary)
        yield _force(forced, lambda length: length == prompt + most - 1)
    yield _only_numbers if options.remove_invalid_values else None
    yield _grow(eos, prompt + decay[0], decay[1]) if decay and eos.size else None
    suppressed, at_first = options.suppress_tokens, options.begin_suppress_tokens
    yield _forbid(_within(suppressed, vocabulary), lambda _: True) if suppressed else None
    yield _forbid(_within(at_first, vocabulary), lambda length: length == first) if at_first else None


def constrained(raw: Logits, processed: Logits, allowed: NDArray[np.bool_]) -> Logits:
    """Return `processed` with -inf where `allowed` (bool [vocabulary]) is False.

    A constraint wins over everything else: where the steps left none of the allowed tokens (no end
    of sequence yet, but the grammar allows nothing else), the model's own logits decide among them.
    """
    result = np.where(allowed, processed, _NEVER)
    if not np.isfinite(result.max()):
        result = np.where(allowed, raw, _NEVER)
    return result


def _within(tokens: Iterable[int], vocabulary: int) -> Tokens:
    return np.array([token for token in dict.fromkeys(tokens) if token < vocabulary], dtype=np.int64)


def _bias(sequences: Iterable[tuple[tuple[int, ...], float]], vocabulary: int) -> Step:
    biases = {ids: bias for ids, bias in sequences if max(ids) < vocabulary}  # of equal ones the last counts
    single = {ids[0]: bias for ids, bias in biases.items() if len(ids) == 1}
    longer = [(np.array(ids[:-1]), ids[-1], bias) for ids, bias in biases.items() if len(ids) > 1]

    def step(history: Tokens, logits: Logits) -> None:
        sums = dict(single)
        for prefix, last, bias in longer:
            if prefix.size <= history.size and np.array_equal(history[-prefix.size :], prefix):
                sums[last] = sums.get(last, 0.0) + bias
        if sums:
            logits[list(sums)] += np.fromiter(sums.values(), np.float32, len(sums))

    return step


def _penalize(logits: Logits, tokens: Tokens, penalty: float) -> None:
    found = logits[tokens]
    logits[tokens] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))


def _encoder_repetition(penalty: float, source: Tokens) -> Step:
    return lambda history, logits: _penalize(logits, source, penalty)


def _repetition(penalty: float) -> Step:
    # Ids beyond the logits exist where the embedding is longer than the head: they cannot come anyway.
    return lambda history, logits: _penalize(logits, history[history < logits.size], penalty)


def _presence_and_frequency(presence: float, frequency: float, prompt: int) -> Step:
    # OpenAI's API guide: mu[j] - c[j] * frequency - (c[j] > 0) * presence; c counts the generated tokens.
    def step(history: Tokens, logits: Logits) -> None:
        tokens, counts = np.unique(history[prompt:], return_counts=True)
        logits[tokens] -= (counts * frequency + presence).astype(np.float32)

    return step


def _no_repeated_ngram(size: int) -> Step:
    def step(history: Tokens, logits: Logits) -> None:
        banned = _continuations(history, history[max(0, history.size + 1 - size) :], size)
        logits[banned[banned < logits.size]] = _NEVER

    return step


def _no_ngram_of(source: Tokens, size: int) -> Step:
    def step(history: Tokens, logits: Logits) -> None:
        if history.size >= size - 1:
            logits[_continuations(source, history[history.size + 1 - size :], size)] = _NEVER

    return step


def _continuations(text: Tokens, prefix: Tokens, size: int) -> Tokens:
    """Return the last token of every n-gram of `text` (n is `size`) whose others are `prefix`."""
    windows = text.size - size + 1
    if windows <= 0:
        return text[:0]
    last = text[size - 1 :]
    matches = np.ones(windows, np.bool_)
    for place, token in enumerate(prefix):
        matches &= text[place : place + windows] == token
    return last[matches]


def _forbid(tokens: Tokens, when: Callable[[int], bool]) -> Step:
    def step(history: Tokens, logits: Logits) -> None:
        if when(history.size):
            logits[tokens] = _NEVER

    return step


def _force(tokens: Tokens, when: Callable[[int], bool]) -> Step:
    def step(history: Tokens, logits: Logits) -> None:
        if when(history.size):
            logits[:] = _NEVER
            logits[tokens] = 0.0

    return step


def _only_numbers(_: Tokens, logits: Logits) -> None:
    logits[np.isnan(logits)] = 0.0
    limits = np.finfo(np.float32)
    np.clip(logits, limits.min, limits.max, out=logits)


def _grow(eos: Tokens, start: int, factor: float) -> Step:
    def step(history: Tokens, logits: Logits) -> None:
        if history.size > start:
            found = logits[eos]
            growth = np.abs(found) * np.float32(factor ** (history.size - start) - 1)
            logits[eos] = found + np.where(np.isfinite(found), growth, 0)

    return step
