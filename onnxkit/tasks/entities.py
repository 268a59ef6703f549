"""Tokens to entities, by the strategies of transformers' token-classification pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxkit.tasks.base import Array, Record
from onnxkit.tasks.labels import Labels

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token of a text.

    Attributes:
        scores: a probability a label, float32 [labels].
        start, end: characters of the text.
        continues: it continues the word of the token before it.
    """

    scores: Array
    start: int
    end: int
    continues: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Tagged:
    """A stretch of text with a label."""

    label: str
    score: float
    start: int
    end: int

    def record(self, text: str) -> Record:
        """Return the plain form, with the stretch itself as `text`."""
        return {
            "label": self.label,
            "score": self.score,
            "text": text[self.start : self.end],
            "start": self.start,
            "end": self.end,
        }


def tag_tokens(tokens: Sequence[Token], labels: Labels) -> list[Tagged]:
    """Give each token its likeliest label."""
    return [_tagged(token.scores, token.start, token.end, labels) for token in tokens]


def aggregate(tokens: Sequence[Token], labels: Labels, strategy: str) -> list[Tagged]:
    """Make entities of tokens.

    "none" keeps tokens; "simple" joins neighbours of one type; "first", "average" and "max" first
    give every word one label (its first token's, that of the mean scores, its surest token's). The
    prefixes B- and I- are understood: B- starts a new entity. Tokens labelled O are dropped.
    """
    if strategy in ("none", "simple"):
        tagged = tag_tokens(tokens, labels)
    else:
        tagged = [_tag_word(word, labels, strategy) for word in _words(tokens)]
    entities = tagged if strategy == "none" else _join(tagged)
    return [entity for entity in entities if entity.label != "O"]


def without_overlaps(entities: Sequence[Tagged]) -> list[Tagged]:
    """Of entities of several windows that overlap, keep the longest, then the surest."""
    kept: list[Tagged] = []
    for entity in sorted(entities, key=lambda one: one.start):
        last = kept[-1] if kept else None
        if last is None or not last.start <= entity.start < last.end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
            kept[-1] = entity
    return kept


def split_prefix(label: str) -> tuple[str, str]:
    """Split "B-PER" into ("B", "PER"); a label without a prefix continues ("I")."""
    if label.startswith(("B-", "I-")):
        return label[0], label[2:]
    return "I", label


def _tagged(scores: Array, start: int, end: int, labels: Labels) -> Tagged:
    best = int(scores.argmax())
    return Tagged(labels.name(best), float(scores[best]), start, end)


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _tag_word(word: Sequence[Token], labels: Labels, strategy: str) -> Tagged:
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: token.scores.max()).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    return _tagged(scores, word[0].start, word[-1].end, labels)


def _join(tagged: Sequence[Tagged]) -> list[Tagged]:
    groups: list[list[Tagged]] = []
    for one in tagged:
        prefix, kind = split_prefix(one.label)
        if groups and prefix != "B" and kind == split_prefix(groups[-1][-1].label)[1]:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_entity(group) for group in groups]


def _entity(group: Sequence[Tagged]) -> Tagged:
    kind = group[0].label.split("-", 1)[-1]
    return Tagged(kind, float(np.mean([one.score for one in group])), group[0].start, group[-1].end)
