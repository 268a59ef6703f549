"""Beam search against transformers' own, over logits that depend on the whole sequence so far."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from onnxkit.generate.beams import BeamSearch, Hypothesis
from onnxkit.generate.logits import processors
from onnxkit.generate.options import GenerationOptions
from onnxkit.generate.sampling import generator

VOCABULARY = 11
END = 2


@cache
def _model(seed: int) -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=1,
        eos_token_id=END, pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def _logits(model: Any, rows: list[Any]) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.stack(rows))).logits[:, -1].numpy()


def search(seed: int, prompt: list[int], most: int, options: GenerationOptions, **other: Any) -> BeamSearch:
    """Run a whole search with torch as the model; no cache, so parents only matter through `history`."""
    ids = np.array(prompt)
    process = processors(options, vocabulary=VOCABULARY, prompt_length=ids.size, max_new_tokens=most)
    beams = BeamSearch(options, ids, max_new_tokens=most, process=process, rng=generator(seed), **other)
    beams.step(_logits(_model(seed), [ids]))
    while not beams.done:
        before = [beams.history(beam).copy() for beam in range(options.num_beams)]
        beams.step(_logits(_model(seed), before))
    return beams


def theirs(seed: int, prompt: list[int], most: int, **settings: Any) -> tuple[list[tuple[int, ...]], Any]:
    import torch

    output = _model(seed).generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=most, do_sample=False, return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip
    ends = settings.get("eos_token_id", END)
    ends = set(ends if isinstance(ends, list) else [ends])
    sequences = []
    for row in output.sequences[:, len(prompt) :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        sequences.append(tuple(row[:end]))
    return sequences, output.sequences_scores.numpy()


SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": "never", "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 3, "eos_token_id": [2, 5, 7], "num_return_sequences": 3},
    {"num_beams": 3, "min_new_tokens": 5},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {"num_beams": 3, "forced_eos_token_id": 2, "num_return_sequences": 3},
    {"num_beams": 3, "renormalize_logits": True, "repetition_penalty": 1.5},
]


@pytest.mark.filterwarnings("ignore:Unfeasible length")
@pytest.mark.parametrize(
    "settings", SETTINGS, ids=[", ".join(f"{k}={v}" for k, v in s.items()) for s in SETTINGS]
)
def test_beams_equal_transformers(settings: dict[str, Any]) -> None:
    own = {
        {"eos_token_id": "eos_token_ids", "forced_eos_token_id": "forced_eos_token_ids"}.get(
            name, name
        ): value
        for name, value in settings.items()
    }
    for name in ("eos_token_ids", "forced_eos_token_ids"):
        if name in own:
            own[name] = tuple(own[name]) if isinstance(own[name], list) else (own[name],)
    options = GenerationOptions(**{"eos_token_ids": (END,), **own})
    for seed in range(3):
        # Forced to end at once, transformers fills up with empty sequences that no beam made; we do not.
        for most in (4, 12) if "forced_eos_token_id" in settings else (1, 4, 12):
            prompt = [1, 3 + seed, 4]
            found = search(seed, prompt, most, options).hypotheses()
            sequences, scores = theirs(seed, prompt, most, **settings)
            assert [hypothesis.tokens for hypothesis in found] == sequences
            np.testing.assert_allclose(
                [hypothesis.score for hypothesis in found], scores, rtol=1e-4, atol=1e-5
            )


def test_the_reason_says_what_was_cut() -> None:
    found = search(0, [1, 3], 6, GenerationOptions(num_beams=3, num_return_sequences=3, eos_token_ids=(END,)))
    for hypothesis in found.hypotheses():
        assert hypothesis.finish_reason == ("length" if len(hypothesis.tokens) == 6 else "stop")


def test_parents_and_tokens_tell_the_cache_what_to_do() -> None:
    options = GenerationOptions(num_beams=3)
    process = processors(options, vocabulary=VOCABULARY, prompt_length=1, max_new_tokens=5)
    beams = BeamSearch(options, np.array([1]), max_new_tokens=5, process=process, rng=generator(0))
    beams.step(_logits(_model(0), [np.array([1])]))
    assert beams.parents.tolist() == [0, 0, 0]
    before = [beams.history(beam).copy() for beam in range(3)]
    beams.step(_logits(_model(0), before))
    for beam in range(3):
        expected = [*before[beams.parents[beam]], beams.tokens[beam]]
        assert beams.history(beam).tolist() == expected


def test_beam_sampling_draws_continuations_without_replacement() -> None:
    # One step of two beams from a known distribution: the first drawn follows it, the two differ.
    options = GenerationOptions(num_beams=2, do_sample=True, top_k=0, eos_token_ids=())
    logits = np.array([[1, 0, -1, -2]], np.float32)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    counts = np.zeros(4)
    process = processors(options, vocabulary=4, prompt_length=1, max_new_tokens=3)
    for seed in range(3000):
        beams = BeamSearch(options, np.array([1]), max_new_tokens=3, process=process, rng=generator(seed))
        _, drawn, _ = beams._best(np.broadcast_to(logits, (2, 4)))
        assert sorted(drawn.tolist()) == [0, 1, 2, 3]
        counts[drawn[0]] += 1
    assert ((counts - 3000 * expected) ** 2 / (3000 * expected)).sum() < 18  # 99.95 % for 3 degrees


def test_beam_sampling_repeats_with_its_seed() -> None:
    options = GenerationOptions(num_beams=3, do_sample=True, top_k=5, num_return_sequences=2)
    first = search(1, [1, 4], 8, options).hypotheses()
    assert first == search(1, [1, 4], 8, options).hypotheses()
    assert len(first) == 2


class _StopsAfter:
    """A StopCheck: ends where `token` came twice."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.seen = 0

    def push(self, token: int) -> bool:
        self.seen += token == self.token
        return self.seen == 2


def test_a_stop_check_follows_its_own_beam() -> None:
    options = GenerationOptions(num_beams=4, num_return_sequences=4, length_penalty=0.0)
    for hypothesis in search(2, [1, 3], 10, options, stop=_StopsAfter(6)).hypotheses():
        if hypothesis.finish_reason == "stop":
            assert hypothesis.tokens.count(6) == 2
            assert hypothesis.tokens[-1] == 6
        else:
            assert hypothesis.tokens.count(6) < 2


class _Spells:
    """A Constraint: exactly these tokens, one after the other."""

    def __init__(self, *tokens: int, complete: bool = False) -> None:
        self.left = tokens
        self.complete = complete

    @property
    def finished(self) -> bool:
        return not self.left

    def mask(self, left: int | None = None) -> Any:
        return np.arange(VOCABULARY) == (self.left[0] if self.left else END)

    def accept(self, token: int) -> None:
        assert token == self.left[0]
        self.left = self.left[1:]

    def fork(self) -> _Spells:
        return _Spells(*self.left, complete=self.complete)


def test_a_constraint_leaves_one_way() -> None:
    options = GenerationOptions(num_beams=3, num_return_sequences=3, eos_token_ids=(END,))
    found = search(0, [1], 9, options, constraint=_Spells(4, 4, 7)).hypotheses()
    assert [hypothesis.tokens for hypothesis in found] == [(4, 4, 7)]
    assert found[0].finish_reason == "stop"


def test_a_constraint_that_is_complete_at_the_cut_is_no_cut() -> None:
    constraint = _Spells(4, 4, 7, 7)
    options = GenerationOptions(num_beams=2, eos_token_ids=(END,))
    assert search(0, [1], 2, options, constraint=constraint).hypotheses()[0].finish_reason == "length"
    constraint.complete = True
    assert search(0, [1], 2, options, constraint=constraint).hypotheses()[0].finish_reason == "stop"


def test_a_search_that_is_stopped_early_gives_its_best_beam() -> None:
    options = GenerationOptions(num_beams=2)
    process = processors(options, vocabulary=3, prompt_length=1, max_new_tokens=9)
    beams = BeamSearch(options, np.array([1]), max_new_tokens=9, process=process, rng=generator(0))
    beams.step(np.array([[0, 2, 1]], np.float32))
    (best,) = beams.hypotheses()
    assert best == Hypothesis(tokens=(1,), score=pytest.approx(-0.4076, abs=1e-3), finish_reason="length")
