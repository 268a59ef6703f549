"""The steps on the logits against transformers' own list of processors, two penalties against naive code."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.generate.line import line_processors
from onnxkit.generate.logits import constrained, processors
from onnxkit.generate.options import GenerationOptions
from onnxkit.generate.request import Request

VOCABULARY = 13
TOKENS = st.integers(0, VOCABULARY - 1)
SEQUENCE = st.lists(TOKENS, min_size=1, max_size=3)
LOGIT = st.one_of(
    st.floats(-20, 20, width=32), st.integers(-3, 3).map(float), st.just(float("-inf")), st.just(0.0)
)


@cache
def _model(encoder: bool) -> Any:
    import transformers

    if encoder:
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
                decoder_start_token_id=0,
            )
        )  # fmt: skip
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=8,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def theirs(
    settings: dict[str, Any],
    history: list[int],
    prompt: int,
    most: int,
    source: list[int] | None,
    logits: Any,
) -> Any:
    """Return what transformers' `generate` would make of the logits, float32 [vocabulary]."""
    import torch
    import transformers

    model = _model(source is not None)
    config = transformers.GenerationConfig(decoder_start_token_id=0, **settings)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    model._prepare_special_tokens(config, device="cpu")
    config.max_length = prompt + most
    if config.min_new_tokens is not None:
        config.min_length = prompt + config.min_new_tokens
    steps = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=prompt,
        encoder_input_ids=torch.tensor([history[:prompt] if source is None else source]),
        device="cpu",
        model_kwargs={},
    )
    return steps(torch.tensor([history]), torch.tensor(logits)[None].clone())[0].numpy()


def ours(
    settings: dict[str, Any],
    history: list[int],
    prompt: int,
    most: int,
    source: list[int] | None,
    logits: Any,
) -> Any:
    from onnxkit.generate.option_files import fields_of

    options = GenerationOptions(**fields_of(settings, where="test"))
    process = processors(
        options,
        vocabulary=VOCABULARY,
        prompt_length=prompt,
        max_new_tokens=most,
        read=np.array(history[:prompt] if source is None else source),
    )
    before = logits.copy()
    result = process(np.array(history), logits)
    np.testing.assert_array_equal(logits, before)
    return result


@st.composite
def _settings(draw: st.DrawFn) -> dict[str, Any]:
    bias = st.tuples(SEQUENCE, st.floats(-9, 9, width=32)).map(list)
    steps = {
        "sequence_bias": st.lists(bias, min_size=1, max_size=4),
        "repetition_penalty": st.sampled_from([0.5, 1.1, 2.0]),
        "encoder_repetition_penalty": st.sampled_from([0.5, 1.3]),
        "no_repeat_ngram_size": st.integers(1, 4),
        "encoder_no_repeat_ngram_size": st.integers(1, 4),
        "bad_words_ids": st.lists(SEQUENCE, min_size=1, max_size=4),
        "min_length": st.integers(1, 9),
        "min_new_tokens": st.integers(1, 6),
        "forced_bos_token_id": TOKENS,
        "forced_eos_token_id": st.one_of(TOKENS, st.lists(TOKENS, min_size=1, max_size=2)),
        "remove_invalid_values": st.just(True),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 3), st.sampled_from([1.1, 2.5])).map(
            list
        ),
        "suppress_tokens": st.lists(TOKENS, min_size=1, max_size=4),
        "begin_suppress_tokens": st.lists(TOKENS, min_size=1, max_size=4),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(steps)), unique=True, min_size=1, max_size=5))
    result = {name: draw(steps[name]) for name in chosen}
    result["eos_token_id"] = draw(st.one_of(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)))
    if "forced_bos_token_id" in result or "forced_eos_token_id" in result:
        result.pop("suppress_tokens", None)  # transformers refuses some of these
    return result


@settings(max_examples=250, deadline=None)
@given(data=st.data(), chosen=_settings())
def test_every_step_and_their_order_equal_transformers(data: st.DataObject, chosen: dict[str, Any]) -> None:
    history = data.draw(st.lists(TOKENS, min_size=1, max_size=12))
    prompt = data.draw(st.integers(1, len(history)))
    most = data.draw(st.integers(len(history) - prompt + 1, 14))
    source = data.draw(st.one_of(st.none(), st.lists(TOKENS, min_size=1, max_size=8)))
    logits = np.array(data.draw(st.lists(LOGIT, min_size=VOCABULARY, max_size=VOCABULARY)), np.float32)
    arguments = (chosen, history, prompt, most, source, logits)
    np.testing.assert_allclose(ours(*arguments), theirs(*arguments), rtol=2e-6, atol=1e-6)


def test_invalid_values_become_numbers() -> None:
    logits = np.array([np.nan, np.inf, -np.inf] + [1.0] * 10, np.float32)
    arguments = ({"remove_invalid_values": True}, [1], 1, 5, None, logits)
    np.testing.assert_array_equal(ours(*arguments), theirs(*arguments))


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(TOKENS, min_size=1, max_size=20),
    presence=st.sampled_from([-1.0, 0.0, 0.5]),
    frequency=st.sampled_from([-0.5, 0.0, 0.25]),
)
def test_presence_and_frequency_count_generated_tokens(
    history: list[int], presence: float, frequency: float
) -> None:
    prompt = (len(history) + 1) // 2
    logits = np.linspace(-2, 2, VOCABULARY, dtype=np.float32)
    options = GenerationOptions(presence_penalty=presence, frequency_penalty=frequency)
    process = processors(options, vocabulary=VOCABULARY, prompt_length=prompt, max_new_tokens=99)
    counts = Counter(history[prompt:])
    expected = [x - counts[t] * frequency - (counts[t] > 0) * presence for t, x in enumerate(logits.tolist())]
    np.testing.assert_allclose(process(np.array(history), logits), expected, atol=1e-6)


def test_nothing_to_do_costs_no_copy() -> None:
    process = processors(GenerationOptions(), vocabulary=VOCABULARY, prompt_length=1, max_new_tokens=9)
    logits = np.zeros(VOCABULARY, np.float32)
    assert not process
    assert process(np.array([1]), logits) is logits


def test_ids_beyond_the_logits_are_passed_over() -> None:
    # Whisper and padded vocabularies: the tokenizer knows ids that the head does not give.
    options = GenerationOptions(
        repetition_penalty=2.0, no_repeat_ngram_size=1, suppress_tokens=(3, 99),
        bad_words_ids=((99,), (1, 99)),
        eos_token_ids=(99,), min_new_tokens=3, encoder_repetition_penalty=2.0,
    )  # fmt: skip
    process = processors(options, vocabulary=5, prompt_length=1, max_new_tokens=9, read=np.array([7, 2]))
    result = process(np.array([99, 1]), np.ones(5, np.float32))
    np.testing.assert_array_equal(result, np.array([1, -np.inf, 2, -np.inf, 1], np.float32))


def test_without_an_encoder_the_prompt_is_what_was_read() -> None:
    options = GenerationOptions(encoder_no_repeat_ngram_size=1, encoder_repetition_penalty=2.0)
    process = line_processors(Request(prompt=np.array([3, 4]), options=options), vocabulary=6, budget=9)
    result = process(np.array([3, 4, 5]), np.ones(6, np.float32))
    np.testing.assert_array_equal(result, np.array([1, 1, 1, -np.inf, -np.inf, 1], np.float32))
    recording = Request(prompt=np.array([3]), encoder={"input_features": np.zeros((1, 1))}, options=options)
    assert not line_processors(recording, vocabulary=6, budget=9)


def test_rows_of_one_batch_may_differ() -> None:
    plain = GenerationOptions()
    rows = [plain, dataclasses.replace(plain, suppress_tokens=(0,))]
    logits = np.array([[2, 1, 0], [2, 1, 0]], np.float32)
    made = [processors(o, vocabulary=3, prompt_length=1, max_new_tokens=4) for o in rows]
    best = [int(p(np.array([1]), row).argmax()) for p, row in zip(made, logits, strict=True)]
    assert best == [0, 1]


@pytest.mark.parametrize(
    ("processed", "expected"),
    [([5, -np.inf, 3], [-np.inf, -np.inf, 3]), ([5, -np.inf, -np.inf], [-np.inf, 7, -np.inf])],
)
def test_a_constraint_wins_over_the_other_steps(processed: list[float], expected: list[float]) -> None:
    raw = np.array([9, 7, -np.inf], np.float32)
    allowed = np.array([False, True, True])
    result = constrained(raw, np.array(processed, np.float32), allowed)
    np.testing.assert_array_equal(result, np.array(expected, np.float32))
