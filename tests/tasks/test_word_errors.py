"""Word error rate against a plain table, and what counts as a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.tasks.word_errors import transcript_metric, word_error_rate, word_errors, words_of

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def plain(one, other):
    """Levenshtein's recurrence, cell by cell."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i, left in enumerate(one, start=1):
        for j, right in enumerate(other, start=1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (left != right))
    return table[-1][-1]


@given(WORDS, WORDS)
def test_distance_equals_the_plain_recurrence(one, other):
    assert word_errors(one, other) == plain(one, other)


def test_words_are_compared_without_case_and_punctuation():
    assert words_of("  \u201cDon\u2019t\u201d stop--now, 'Anna'! ") == ["don't", "stop", "now", "anna"]
    assert words_of("...") == []


def test_the_rate_is_over_all_words():
    metric = word_error_rate([("the cat sat", "The cat sat."), ("a dog", "a big dog ran")])
    assert (metric.name, metric.value, metric.count) == ("wer", pytest.approx(2 / 7), 2)
    assert not metric.higher_is_better
    assert metric.details["wer_verbatim"] == pytest.approx(4 / 7)


def test_only_samples_with_a_target_count():
    records = [{"text": "yes"}, {"text": "no"}]
    assert transcript_metric(records, [{"target": "yes"}, {"label": "no"}]).value == 0.0
    assert transcript_metric(records, [{}, {}]) is None
    assert word_error_rate([("x", "?")]) is None
