"""Word error rate: how far transcripts are from what was said."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from onnxkit.inputs import Sample
from onnxkit.tasks.base import Metric, Record


def word_errors(found: Sequence[str], right: Sequence[str]) -> int:
    """Return how many words must be replaced, inserted or left out to make `right` of `found`.

    Levenshtein's distance over words, a row of its table at a time.
    """
    ids = {word: index for index, word in enumerate(dict.fromkeys([*found, *right]))}
    one, other = (np.array([ids[word] for word in words], np.int64) for words in (found, right))
    steps = np.arange(len(other) + 1)
    row = steps
    for position, word in enumerate(one, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (other != word))
        # What remains is an insertion from the left: min over k of best[k] + (j - k).
        row = np.minimum.accumulate(np.concatenate(([position], best)) - steps) + steps
    return int(row[-1])


def words_of(text: str) -> list[str]:
    """Return the words that are compared: in lower case, NFKC, without punctuation and symbols.

    An apostrophe inside a word stays (don't). Languages without spaces have a word a sentence here.
    """
    kept = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    spaced = "".join(" " if unicodedata.category(char)[0] in "PS" and char != "'" else char for char in kept)
    return [word for word in (one.strip("'") for one in spaced.split()) if word]


def transcript_metric(records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
    """Return the word error rate of the records' `text` where samples have a `target`, else None."""
    pairs = zip(records, samples, strict=True)
    compared = [(str(one["text"]), str(two["target"])) for one, two in pairs if two.get("target") is not None]
    return word_error_rate(compared)


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> Metric | None:
    """Compare (transcript, target) pairs: errors of all texts over words of all targets.

    `details` has `wer_verbatim`, over words as they are written: case and punctuation count. None
    where no target has a word.
    """
    compared = [(words_of(found), words_of(right)) for found, right in pairs]
    total = sum(len(right) for _, right in compared)
    written = sum(len(right.split()) for _, right in pairs)
    if not total:
        return None
    errors = sum(word_errors(found, right) for found, right in compared)
    verbatim = sum(word_errors(found.split(), right.split()) for found, right in pairs)
    return Metric(
        name="wer",
        value=errors / total,
        higher_is_better=False,
        count=len(pairs),
        details={"wer_verbatim": verbatim / written},
    )
