"""The filters of sampling against transformers' warpers, and the draws against the distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxkit.errors import InputError, UsageError
from onnxkit.generate.options import GenerationOptions
from onnxkit.generate.sampling import candidates, choose, generator, largest

LOGITS = st.one_of(
    st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=40),
    # Sixty-fourths: values a few bits apart would be equal probabilities in one arithmetic only.
    st.lists(st.integers(-768, 768).map(lambda n: n / 64), min_size=2, max_size=40),
).map(lambda values: np.array(values, np.float32))
SHARE = st.floats(0.02, 0.98)
ONE_FILTER = st.one_of(
    st.fixed_dictionaries({"top_k": st.integers(1, 50)}),
    st.fixed_dictionaries({"top_p": SHARE}),
    st.fixed_dictionaries({"min_p": SHARE}),
    st.fixed_dictionaries({"typical_p": SHARE}),
    st.fixed_dictionaries({"epsilon_cutoff": st.floats(1e-4, 0.5)}),
    st.fixed_dictionaries({"eta_cutoff": st.floats(1e-4, 0.5)}),
    st.fixed_dictionaries({"temperature": st.floats(0.1, 4)}),
)


def options_of(chosen: dict[str, Any]) -> GenerationOptions:
    return GenerationOptions(**{"do_sample": True, "top_k": 0, **chosen})


def filtered(logits: Any, options: GenerationOptions, *, keep: int = 1) -> Any:
    """Return the logits with -inf where a filter removes a token, as the warpers do."""
    tokens, left = candidates(logits, options, keep=keep)
    result = np.full_like(logits, -np.inf)
    result[tokens] = left
    return result


def theirs(logits: Any, chosen: dict[str, Any], keep: int) -> Any:
    """Apply transformers' warpers in the order of its `generate`."""
    import torch
    from transformers.generation import logits_process as library

    steps = {
        "temperature": lambda x: library.TemperatureLogitsWarper(x),
        "top_k": lambda x: library.TopKLogitsWarper(x, min_tokens_to_keep=keep),
        "top_p": lambda x: library.TopPLogitsWarper(x, min_tokens_to_keep=keep),
        "min_p": lambda x: library.MinPLogitsWarper(x, min_tokens_to_keep=keep),
        "typical_p": lambda x: library.TypicalLogitsWarper(x, min_tokens_to_keep=keep),
        "epsilon_cutoff": lambda x: library.EpsilonLogitsWarper(x, min_tokens_to_keep=keep),
        "eta_cutoff": lambda x: library.EtaLogitsWarper(x, min_tokens_to_keep=keep),
    }
    result = torch.tensor(logits)[None]
    for name, make in steps.items():
        if name in chosen:
            result = make(chosen[name])(None, result)
    return result[0].numpy()


def at_the_edge(logits: Any, chosen: dict[str, Any]) -> bool:
    """Whether a bound lies within rounding of a token's value: there float32 may fall either way."""
    x = logits.astype(np.float64)
    p = np.exp(x - x.max())
    p /= p.sum()
    entropy = -(p * np.log(p)).sum()
    far = np.abs(-np.log(p) - entropy)
    edges = {
        "top_p": lambda share: np.sort(p).cumsum() - (1 - share),
        "min_p": lambda share: p - share * p.max(),
        "typical_p": lambda mass: p[np.argsort(far, kind="stable")].cumsum() - mass,
        "epsilon_cutoff": lambda bound: p - bound,
        "eta_cutoff": lambda bound: p - min(bound, bound**0.5 * np.exp(-entropy)),
    }
    near = [np.abs(edges[name](value)).min() < 1e-5 for name, value in chosen.items() if name in edges]
    gaps = np.diff(np.sort(far))
    return any(near) or ("typical_p" in chosen and bool(((gaps > 0) & (gaps < 1e-5)).any()))


@settings(max_examples=300, deadline=None)
@given(logits=LOGITS, chosen=ONE_FILTER, keep=st.integers(1, 3))
def test_each_filter_equals_transformers(logits: Any, chosen: dict[str, Any], keep: int) -> None:
    assume(not at_the_edge(logits, chosen))
    got, wanted = filtered(logits, options_of(chosen), keep=keep), theirs(logits, chosen, keep)
    if len(set(logits.tolist())) < logits.size:
        # Which of equal tokens go is left open by torch (its sort is not stable): compare how many of each.
        got, wanted = np.sort(got), np.sort(wanted)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("size", [100, 5000, 40000])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_all_filters_together_equal_transformers(size: int, spread: float) -> None:
    random = np.random.default_rng(size)
    for _ in range(8):
        logits = (random.standard_normal(size) * spread).astype(np.float32)
        chosen = {
            "temperature": float(random.uniform(0.3, 2)), "top_k": int(random.integers(5, size)),
            "top_p": float(random.uniform(0.3, 0.99)), "min_p": float(random.uniform(0.001, 0.1)),
            "typical_p": float(random.uniform(0.3, 0.99)), "epsilon_cutoff": 1e-5, "eta_cutoff": 1e-4,
        }  # fmt: skip
        kept = {name: value for name, value in chosen.items() if random.random() < 0.6}
        got, wanted = filtered(logits, options_of(kept)), theirs(logits, kept, 1)
        # Among thousands of tokens a bound may lie within rounding of one of them.
        assert np.count_nonzero(np.isfinite(got) != np.isfinite(wanted)) <= max(1, size // 1000)
        both = np.isfinite(got) & np.isfinite(wanted)
        np.testing.assert_allclose(got[both], wanted[both], rtol=1e-6)


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = np.array([1, -np.inf, 0, -np.inf], np.float32)
    for chosen in ({}, {"top_k": 3}, {"top_p": 0.999}, {"min_p": 0.0}, {"typical_p": 0.99}):
        tokens, left = candidates(logits, options_of(chosen))
        assert tokens.tolist() == [0, 2]
        assert left.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "chosen", [{}, {"top_k": 5}, {"temperature": 2.0, "top_p": 0.9}], ids=["all", "top-k", "top-p"]
)
def test_draws_follow_the_distribution(chosen: dict[str, Any]) -> None:
    logits = np.array([2, 1, 0.5, 0, -1, -1, -3, 1.5], np.float32)
    options = options_of(chosen)
    left = filtered(logits, options).astype(np.float64)
    expected = np.exp(left) / np.exp(left).sum()
    rng = generator(0)
    draws = 20000
    counts = np.bincount([choose(logits, options, rng) for _ in range(draws)], minlength=logits.size)
    assert not counts[expected == 0].any()
    some = expected > 0
    chi_square = ((counts[some] - draws * expected[some]) ** 2 / (draws * expected[some])).sum()
    assert chi_square < 26  # the 99.95 % quantile for 7 degrees of freedom


def test_draws_over_a_large_vocabulary_reach_every_block() -> None:
    rng = generator(3)
    options = options_of({})
    logits = np.zeros(5000, np.float32)
    drawn = np.array([choose(logits, options, rng) for _ in range(4000)])
    assert abs(drawn.mean() / 4999 - 0.5) < 0.03
    assert drawn.max() > 4900
    places = [0, 1023, 1024, 2047]
    certain = [np.where(np.arange(2048) == place, 0, -90).astype(np.float32) for place in places]
    assert [choose(row, options, rng) for row in certain] == places


def test_a_sequence_draws_the_same_whatever_else_runs() -> None:
    logits = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    options = options_of({"top_k": 50})

    def text(sequence: int, beside: int) -> list[int]:
        own, others = generator(7, sequence), [generator(7, 10 + other) for other in range(beside)]
        tokens = []
        for _ in range(12):
            for other in others:
                choose(logits, options, other)
            tokens.append(choose(logits, options, own))
        return tokens

    assert text(0, 0) == text(0, 3)
    assert text(0, 0) != text(1, 0)
    assert generator(None).random() != generator(None).random()


def test_a_draw_takes_one_number() -> None:
    # Speculation relies on it: a token that is taken back costs none, whatever the filters are.
    logits = np.zeros(9, np.float32)
    used, counted = generator(5), generator(5)
    for chosen in ({}, {"top_k": 2}, {"top_p": 0.5}):
        choose(logits, options_of(chosen), used)
        counted.random()
    assert used.random() == counted.random()


def test_the_best_token_is_the_lowest_of_equal_ones() -> None:
    assert choose(np.array([0, 3, 3], np.float32), GenerationOptions(), generator(0)) == 1
    assert largest(np.array([1, 3, 2, 3, 2, 2], np.float32), 4).tolist() == [1, 3, 2, 4]


@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_are_no_numbers_are_said(do_sample: bool) -> None:
    options = GenerationOptions(do_sample=do_sample)
    with pytest.raises(InputError, match="no numbers"):
        choose(np.array([0, np.nan, 1], np.float32), options, generator(0))
    with pytest.raises(UsageError, match="forbid them all"):
        choose(np.full(3, -np.inf, np.float32), options, generator(0))
