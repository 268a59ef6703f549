"""How far a language model's next-token distributions are from another's: KL divergence, top-1, perplexity.

The figures are those of llama.cpp's `perplexity --kl-divergence` (tools/perplexity/README.md there): for
every token of a text, KL(P ‖ Q) = Σ p (ln p - ln q) over the vocabulary, P of the reference and Q of the
other model given the same tokens before it; their mean, 99.9th percentile and maximum; and how often both
models find the same token the most probable. Perplexity is exp of the mean negative log-probability of the
text's tokens.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.generate.engine import Engine
from onnxkit.generate.sampling import log_softmax
from onnxkit.generate.single import SingleRow
from onnxkit.inputs import blamed

Array = np.ndarray[Any, Any]

WINDOW = 512
"""Tokens that are run on from an empty cache, at most."""

_CHUNK_BYTES = 1 << 25  # of one model's log-probabilities at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """Two language models on the same text.

    Attributes:
        tokens: that were predicted.
        kl_mean, kl_p999, kl_max: KL(reference ‖ other) a token, nats; infinite where the other is not finite.
        top1_agreement: share of tokens for which both find the same one the most probable.
        perplexity_before, perplexity_after: of the reference, of the other.
    """

    tokens: int
    kl_mean: float
    kl_p999: float
    kl_max: float
    top1_agreement: float
    perplexity_before: float
    perplexity_after: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens that are predicted from an empty cache.

    Attributes:
        ids: int64 [n], n >= 2: the first is only given.
        encoder: the encoder's unbatched inputs; empty for a decoder-only model.
        where: the place of the text, for errors.
    """

    ids: Array
    encoder: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    where: str = "the text"


def windows(
    texts: Iterable[Array], *, length: int = WINDOW, tokens: int | None = None, where: str = "the text"
) -> list[Window]:
    """Cut texts (int64 [n] each) into windows of `length` tokens; stop once `tokens` are to be predicted.

    A window never spans two texts; a rest of one token is left out.
    """
    found: list[Window] = []
    room = math.inf if tokens is None else tokens
    for ids in texts:
        for first in range(0, len(ids) - 1, length):
            piece = ids[first : first + int(min(length, room + 1))]
            if room < 1:
                return found
            if len(piece) >= 2:
                found.append(Window(ids=piece, where=where))
                room -= len(piece) - 1
    return found


class Reference:
    """A model that others are compared with.

    With `remember` its log-probabilities (float32, 4 bytes x vocabulary a token) are kept in a nameless file
    of that folder from the first comparison on, so that the next ones need not run it again.
    """

    def __init__(self, engine: Engine, texts: Sequence[Window], *, remember: Path | None = None) -> None:
        """Raises InputError where `texts` holds no token to predict."""
        if not texts:
            raise InputError("a divergence needs a text of two tokens or more")
        self._engine, self._texts = engine, texts
        self._folder = remember
        self._kept: Array | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(len(window.ids) - 1 for window in self._texts)

    def compare(self, other: Engine) -> Divergence:
        """Run `other` on the same text, in chunks: memory grows with neither its length nor its number.

        Raises:
            InputError: another vocabulary, or a window longer than a model's context.
            ResourceError: the keys and values do not fit into memory.
        """
        if other.vocabulary != self._engine.vocabulary:
            raise InputError(
                f"vocabularies of {self._engine.vocabulary} and {other.vocabulary} tokens have no divergence"
            )
        kls: list[Array] = []
        agreed, nll_before, nll_after = 0, 0.0, 0.0
        for (chosen, before), (_, after) in zip(
            self._log_probabilities(), predicted(other, self._texts), strict=True
        ):
            kls.append(kl_divergence(before, after))
            agreed += int((before.argmax(-1) == after.argmax(-1)).sum())
            places = np.arange(len(chosen))
            nll_before -= float(before[places, chosen].sum(dtype=np.float64))
            nll_after -= float(after[places, chosen].sum(dtype=np.float64))
        kl, count = np.concatenate(kls), self.tokens
        return Divergence(
            tokens=count,
            kl_mean=float(kl.mean()),
            kl_p999=float(np.quantile(kl, 0.999, method="higher")),
            kl_max=float(kl.max()),
            top1_agreement=agreed / count,
            perplexity_before=_perplexity(nll_before / count),
            perplexity_after=_perplexity(nll_after / count),
        )

    def _log_probabilities(self) -> Iterator[tuple[Array, Array]]:
        if self._folder is None:
            yield from predicted(self._engine, self._texts)
            return
        if self._kept is not None:
            yield from self._remembered(self._kept)
            return
        # Nameless: it is gone with the process, however that ends.
        with tempfile.TemporaryFile(dir=self._folder) as file:
            kept = np.memmap(file, np.float32, "w+", shape=(self.tokens, self._engine.vocabulary))
        first = 0
        for chosen, rows in predicted(self._engine, self._texts):
            kept[first : first + len(rows)] = rows
            first += len(rows)
            yield chosen, rows
        self._kept = kept

    def _remembered(self, kept: Array) -> Iterator[tuple[Array, Array]]:
        first = 0
        for chosen in _chunks(self._engine.vocabulary, self._texts):
            yield chosen, kept[first : first + len(chosen)]
            first += len(chosen)


def predicted(engine: Engine, texts: Sequence[Window]) -> Iterator[tuple[Array, Array]]:
    """Yield, in chunks, the tokens to predict, int64 [n], and ln p of all tokens, float32 [n, vocabulary].

    Raises:
        InputError: a window longer than the model's context, or a token that it has no output for.
    """
    for window in texts:
        largest = int(window.ids.max(initial=0))
        if largest >= engine.vocabulary:
            raise InputError(
                f"{window.where}: token {largest} is none of the model's {engine.vocabulary:,}; "
                "mend this sample or leave it out"
            )
        if engine.limit is not None and len(window.ids) > engine.limit:
            raise InputError(f"a window of {len(window.ids)} tokens: the model's context is {engine.limit}")
        with blamed(window.where):
            cross = engine.encoder.run([window.encoder]) if engine.encoder else None
            row = SingleRow(engine.decoder, announced=len(window.ids), cross=cross)
            for chosen in _chunks(engine.vocabulary, [window]):
                given = window.ids[row.length : row.length + len(chosen)]
                yield chosen, log_softmax(row.append(given, keep=len(given)))


def kl_divergence(before: Array, after: Array) -> Array:
    """KL(before ‖ after) of each row of log-probabilities [n, vocabulary], nats: float64 [n].

    A token that `before` rules out adds nothing; a row of `after` that is not finite is infinitely far.
    """
    probable = np.exp(before)
    with np.errstate(invalid="ignore"):
        terms = np.where(probable > 0, probable * (before - after), np.float32(0))
    total: Array = terms.sum(-1, dtype=np.float64)
    # Each term is rounded: equal distributions may come out a little below zero, which KL never is.
    return np.where(np.isnan(total), np.inf, np.maximum(total, 0.0))


def _chunks(vocabulary: int, texts: Iterable[Window]) -> Iterator[Array]:
    """The tokens to predict, as many at a time as fit into `_CHUNK_BYTES` of log-probabilities."""
    size = max(1, _CHUNK_BYTES // (4 * vocabulary))
    for window in texts:
        for first in range(1, len(window.ids), size):
            yield window.ids[first : first + size]


def _perplexity(mean_nll: float) -> float:
    return math.inf if not mean_nll < 700 else math.exp(mean_nll)


__all__ = ["WINDOW", "Divergence", "Reference", "Window", "kl_divergence", "predicted", "windows"]
