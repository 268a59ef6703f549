"""What the engine is asked for, and what it gives back: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from onnxkit.generate.constraint import Constraint
    from onnxkit.generate.options import GenerationOptions

FinishReason = Literal["stop", "length"]


class StopCheck(Protocol):
    """Watches one sequence for what the engine cannot know, for instance a text that ends it.

    It survives `copy.copy`, which beam search makes where a beam branches: its attributes are
    replaced, never changed in place.
    """

    def push(self, token: int) -> bool:
        """Take the next token; return whether the sequence ends with it (the token is kept)."""
        ...


class LogitsRule(Protocol):
    """What a model asks of its own tokens (whisper's timestamps): depends on nothing but its arguments."""

    def __call__(self, tokens: np.ndarray[Any, Any], logits: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]:
        """Take one sequence's new tokens int64 [n] and raw logits float32 [vocabulary]; return new ones.

        In a beam search these are log-probabilities, and so stay what it returns.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue.

    Attributes:
        prompt: int64 [n], n >= 1: the prompt's ids; with an encoder, the decoder's prefix.
        encoder: inputs of the encoder without their batch dimension (`input_ids` int64 [m],
            `attention_mask` int64 [m], `input_features` float [mels, frames]); empty without an encoder.
        options: how to choose tokens and when to end.
        stop: makes a check for each sequence, or None.
        constraint: makes a constraint for each sequence, or None.
        log_probabilities: whether sequences that no beam search made get a `score`, too (a pass over
            the vocabulary a token).
        rule: rewrites the model's logits before everything else looks at them, or None.
    """

    prompt: np.ndarray[Any, Any]
    options: GenerationOptions
    encoder: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    stop: Callable[[], StopCheck] | None = None
    constraint: Callable[[], Constraint] | None = None
    log_probabilities: bool = False
    rule: LogitsRule | None = None


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One continuation.

    Attributes:
        tokens: the new ids; one of `eos_token_ids` that ended them is cut, one that `stop` ended on is kept.
        finish_reason: "stop": an eos token, `stop`, or a constraint that is satisfied; "length": no room,
            or no more tokens asked for.
        score: with beams the beam's score (sum of log-probabilities over a power of the length); else,
            when asked for, the sum of the log-probabilities, after `rule` and before all else, of the chosen
            tokens (with the eos token), in nats.
    """

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    score: float | None


@dataclass(frozen=True, kw_only=True)
class GenerationStats:
    """What a request took.

    Attributes:
        first_token_s: from the start of its prefill to its first token, in seconds (an encoder's run
            counts).
        seconds: from the start of its prefill to its end; other rows of the batch ran meanwhile.
        new_tokens: tokens of all its sequences.
        prefilled_tokens: tokens of the prompt that were computed.
        cached_tokens: tokens of the prompt whose keys and values were still there.
        steps: runs of the decoder after the prefill.
        proposed: tokens that speculation proposed; `accepted`: those of them that were right.
    """

    first_token_s: float
    seconds: float
    new_tokens: int
    prefilled_tokens: int
    cached_tokens: int = 0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second, the first one and the prefill left out; 0.0 where there are none."""
        rest = self.seconds - self.first_token_s
        return (self.new_tokens - 1) / rest if self.new_tokens > 1 and rest > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The answer to a request.

    Attributes:
        sequences: `num_return_sequences` of them; with beams best first.
        prompt_tokens: length of the prompt (of the encoder's input ids where there is an encoder).
        stats: what it took.
    """

    sequences: tuple[Sequence, ...]
    prompt_tokens: int
    stats: GenerationStats
