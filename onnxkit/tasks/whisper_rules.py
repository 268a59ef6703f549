"""What whisper may say next: its prefix, suppressed tokens, and timestamps in pairs that do not go back."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxkit.tasks.base import Array
from onnxkit.tasks.numerics import softmax


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestampRules:
    """The rules of timestamps; equal to transformers' WhisperTimeStampLogitsProcessor.

    Attributes:
        begin: the id of `<|0.00|>`; every later id is a timestamp, 0.02 s apart.
        eos: the id that ends a transcript; ids below it are text.
        max_initial: how many steps after `begin` the first timestamp may be; None for any.
    """

    begin: int
    eos: int
    max_initial: int | None = None

    def apply(self, tokens: Array, scores: Array) -> None:
        """Forbid, in place, in scores float32 [vocabulary] what must not follow tokens int64 [n].

        The transcript starts with a timestamp. Timestamps come in pairs (one ends a segment, one
        begins the next) except before the end, and never go back. Where all timestamps together are
        likelier than the likeliest other token, a timestamp it is.
        """
        begin = self.begin
        scores[begin - 1] = -np.inf  # <|notimestamps|>
        last = len(tokens) >= 1 and tokens[-1] >= begin
        before = len(tokens) < 2 or tokens[-2] >= begin
        if last and before:
            scores[begin:] = -np.inf
        elif last:
            scores[: self.eos] = -np.inf
        stamps = tokens[tokens >= begin]
        if len(stamps):
            scores[begin : stamps[-1] + (0 if last and not before else 1)] = -np.inf
        if not len(tokens):
            scores[:begin] = -np.inf
            if self.max_initial is not None:
                scores[begin + self.max_initial + 1 :] = -np.inf
        if _log_sum(scores[begin:]) > scores[:begin].max():
            scores[:begin] = -np.inf


class WhisperRule:
    """The rule of one window: what a `Prompt` hands to the engine.

    Attributes:
        prefix: for each of the first new tokens the ids of which the best is taken: languages, a task. They
            belong to the decoder's prefix, and are decoded only to learn the language on the way.
        no_speech: probability that the window holds no speech; None until the first step, or where
            it is not asked for.
    """

    def __init__(
        self,
        *,
        prefix: tuple[tuple[int, ...], ...] = (),
        suppress: tuple[int, ...] = (),
        begin_suppress: tuple[int, ...] = (),
        timestamps: TimestampRules | None = None,
        no_speech_token: int | None = None,
    ) -> None:
        self.prefix = prefix
        self.no_speech: float | None = None
        self._suppress = np.array(suppress, np.int64)
        self._begin_suppress = np.array(begin_suppress, np.int64)
        self._timestamps = timestamps
        self._no_speech_token = no_speech_token

    def __call__(self, tokens: Array, logits: Array, /) -> Array:
        """Take new tokens int64 [n] and raw logits float32 [vocabulary]; return what may come next."""
        position = len(tokens)
        if position == 0 and self._no_speech_token is not None:
            self.no_speech = float(softmax(logits)[self._no_speech_token])
        if position < len(self.prefix):
            allowed = np.array(self.prefix[position])
            best = allowed[np.argmax(logits[allowed])]
            chosen = np.full_like(logits, -np.inf)
            chosen[best] = logits[best]
            return chosen
        scores = logits.astype(np.float32)  # a copy
        said = np.asarray(tokens[len(self.prefix) :])
        if len(said) == 0:
            _forbid(scores, self._begin_suppress)
        _forbid(scores, self._suppress)
        if self._timestamps:
            self._timestamps.apply(said, scores)
        return scores


def _forbid(scores: Array, ids: Array) -> None:
    # Ids beyond the vocabulary are passed over, as in transformers: a config's defaults are whisper's own.
    scores[ids[(ids >= 0) & (ids < scores.size)]] = -np.inf


def _log_sum(scores: Array) -> float:
    """Return log(sum(exp(scores))) without overflow; -inf where every score is -inf."""
    greatest = scores.max(initial=-np.inf)
    if greatest == -np.inf:
        return -np.inf
    return float(greatest + np.log(np.exp(scores - greatest).sum()))
