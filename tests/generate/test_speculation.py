"""Guesses: what prompt lookup finds, and how long they should be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxkit.generate.speculation import LengthPolicy, NgramProposer
from tests.patience import lines_run


def naive(history: list[int], count: int, longest: int, shortest: int) -> list[int]:
    """Search the whole history for the longest ending, its latest earlier occurrence first."""
    for size in range(min(longest, len(history)), shortest - 1, -1):
        for place in range(len(history) - 1, size - 1, -1):
            if history[place - size : place] == history[-size:]:
                text = list(history)
                while len(text) < place + count:
                    text.append(text[len(text) - (len(history) - place)])
                return text[place : place + count]
    return []


@given(
    history=st.lists(st.integers(0, 3), max_size=40),
    count=st.integers(1, 9),
    longest=st.integers(2, 4),
    shortest=st.integers(1, 2),
)
def test_lookup_equals_a_search_of_the_history(
    history: list[int], count: int, longest: int, shortest: int
) -> None:
    proposer = NgramProposer(history, longest=longest, shortest=shortest)
    assert proposer.propose(count) == naive(history, count, longest, shortest)


def test_a_copied_passage_is_guessed_and_new_text_is_not() -> None:
    proposer = NgramProposer([10, 11, 12, 13, 14, 99, 10, 11])
    assert proposer.propose(3) == [12, 13, 14]
    proposer.push(77)
    assert proposer.propose(3) == []


def test_a_token_costs_the_same_after_a_long_history() -> None:
    def lines(history: int) -> int:
        proposer = NgramProposer(range(history))

        def work() -> None:
            for token in range(100):
                proposer.push(token)
                proposer.propose(8)

        return lines_run(work)

    assert lines(50_000) == lines(200)


def test_right_guesses_make_longer_ones() -> None:
    policy = LengthPolicy(most=8, marginal=0.1)
    first = policy.length()
    for _ in range(20):
        policy.record(policy.length(), policy.length())
    assert policy.length() == 8 > first >= 1
    assert policy.acceptance > 0.95


def test_wrong_guesses_end_guessing_but_for_a_try_now_and_then() -> None:
    policy = LengthPolicy(most=8, marginal=0.2)
    for _ in range(40):
        policy.record(policy.length(), 0)
    lengths = [policy.length() for _ in range(100)]
    assert 1 <= sum(length > 0 for length in lengths) <= 5
    assert policy.acceptance < 0.2


def test_guesses_that_cost_a_whole_run_do_not_pay() -> None:
    policy = LengthPolicy(most=8)
    for _ in range(60):
        policy.timed(0, 0.01)
        policy.timed(4, 0.05)
        policy.record(4, 2)
    assert policy.length() == 0


def test_free_guesses_are_as_long_as_can_be() -> None:
    policy = LengthPolicy(most=6)
    for _ in range(60):
        policy.timed(0, 0.01)
        policy.timed(4, 0.01)
    assert policy.length() == 6


def test_nothing_proposed_teaches_nothing() -> None:
    policy = LengthPolicy()
    before = policy.acceptance
    policy.record(0, 0)
    assert policy.acceptance == before
