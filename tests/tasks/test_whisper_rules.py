"""The rules of whisper's tokens against transformers' processors, on random histories and logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.errors import UsageError
from onnxkit.tasks.whisper_languages import CODES, language_code
from onnxkit.tasks.whisper_rules import TimestampRules, WhisperRule
from onnxkit.tasks.whisper_segments import Clock, compression_ratio, split

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EOS, NO_TIMESTAMPS, SIZE = 20, 25, 60
BEGIN = NO_TIMESTAMPS + 1
TOKENS = st.lists(st.integers(0, SIZE - 1) | st.integers(BEGIN, SIZE - 1), max_size=8)
SEED = st.integers(0, 2**32 - 1)


def logits_of(seed, spread=3.0):
    return (spread * np.random.default_rng(seed).standard_normal(SIZE)).astype(np.float32)


def theirs(tokens, logits, *, initial, suppress, begin_suppress):
    """Apply transformers' processors in the order of its generate, after a prefix of three tokens."""
    from transformers.generation.logits_process import (
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        WhisperTimeStampLogitsProcessor,
    )

    config = transformers.GenerationConfig(
        eos_token_id=EOS, no_timestamps_token_id=NO_TIMESTAMPS, max_initial_timestamp_index=initial
    )
    ids, scores = torch.tensor([[21, 22, 23, *tokens]]), torch.from_numpy(logits.copy())[None]
    scores = SuppressTokensAtBeginLogitsProcessor(begin_suppress, begin_index=3)(ids, scores)
    scores = SuppressTokensLogitsProcessor(suppress)(ids, scores)
    return WhisperTimeStampLogitsProcessor(config, begin_index=3)(ids, scores)[0].numpy()


@settings(max_examples=150, deadline=None)
@given(TOKENS, SEED, st.none() | st.integers(0, 5))
def test_rules_equal_transformers_processors(tokens, seed, initial):
    logits = logits_of(seed)
    suppress, begin_suppress = [3, 7, 24, -1, SIZE], [5, EOS, 50_256]  # of some ids there is no logit
    rule = WhisperRule(
        suppress=tuple(suppress),
        begin_suppress=tuple(begin_suppress),
        timestamps=TimestampRules(begin=BEGIN, eos=EOS, max_initial=initial),
    )
    before = logits.copy()
    found = rule(np.array(tokens, np.int64), logits)
    np.testing.assert_array_equal(logits, before)  # the engine's buffer stays
    expected = theirs(tokens, logits, initial=initial, suppress=suppress, begin_suppress=begin_suppress)
    np.testing.assert_array_equal(found, expected)


@given(SEED)
def test_a_prefix_is_chosen_among_its_ids_and_counts_for_nothing(seed):
    logits = logits_of(seed)
    timestamps = TimestampRules(begin=BEGIN, eos=EOS, max_initial=None)
    rule = WhisperRule(
        prefix=((8, 9, 10), (11,)), begin_suppress=(5,), timestamps=timestamps, no_speech_token=24
    )
    first = rule(np.array([], np.int64), logits)
    assert np.flatnonzero(first > -np.inf).tolist() == [8 + int(np.argmax(logits[8:11]))]
    assert rule.no_speech == pytest.approx(np.exp(logits[24]) / np.exp(logits).sum(), rel=1e-5)
    assert np.flatnonzero(rule(np.array([9]), logits) > -np.inf).tolist() == [11]
    bare = WhisperRule(begin_suppress=(5,), timestamps=timestamps)
    np.testing.assert_array_equal(rule(np.array([9, 11]), logits), bare(np.array([], np.int64), logits))
    np.testing.assert_array_equal(rule(np.array([9, 11, 30, 2]), logits), bare(np.array([30, 2]), logits))


def ruled(seed, length):
    """Return tokens that the rules allow, as a decoder would make them."""
    generator = np.random.default_rng(seed)
    rule, tokens = WhisperRule(timestamps=TimestampRules(begin=BEGIN, eos=EOS)), []
    for _ in range(length):
        scores = rule(np.array(tokens, np.int64), logits_of(generator.integers(2**32)))
        token = int(np.argmax(scores))
        if token == EOS:
            break
        tokens.append(token)
    return tokens


@settings(max_examples=80, deadline=None)
@given(SEED, st.integers(0, 30), st.integers(0, 5_000), st.integers(1, 68))
def test_segments_equal_transformers(seed, length, seek, frames):
    tokens = ruled(seed, length) or [1]
    clock = Clock(begin=BEGIN, step_s=0.02, stride=2)
    segments, advance = split(tokens, clock, seek=seek, frames=frames)
    outputs = [{"sequences": torch.tensor(tokens)}]
    expected, offset = transformers.WhisperForConditionalGeneration._retrieve_segment(
        seek_sequence=torch.tensor(tokens), seek_outputs=outputs, idx=0, prev_idx=0,
        time_offset=torch.tensor([seek * 0.02 / 2], dtype=torch.float64), timestamp_begin=BEGIN,
        seek_num_frames=torch.tensor([frames]), time_precision=0.02, time_precision_features=0.01,
        input_stride=2, return_token_timestamps=False, decoder_input_ids=torch.zeros(1, 3),
    )  # fmt: skip
    assert advance == int(offset)
    assert [list(one.tokens) for one in segments] == [one["tokens"].tolist() for one in expected]
    for one, other in zip(segments, expected, strict=True):
        assert one.start_s == pytest.approx(float(other["start"]), abs=1e-9)
        # Without a timestamp transformers cuts 30 * 0.01 / 0.02 to 14 steps; ours are 15.
        slack = 1e-9 if any(token >= BEGIN for token in tokens) else 0.02 + 1e-9
        assert one.end_s == pytest.approx(float(other["end"]), abs=slack)


@given(st.lists(st.integers(0, 51_864), min_size=1, max_size=40))
def test_compression_ratio_equals_transformers(tokens):
    expected = transformers.WhisperForConditionalGeneration._retrieve_compression_ratio(
        torch.tensor(tokens), 51_865
    )
    assert compression_ratio(tokens, 51_865) == pytest.approx(expected)


def test_languages_are_those_of_transformers():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    assert set(CODES.values()) == set(LANGUAGES)
    assert all(CODES[name] == code for name, code in TO_LANGUAGE_CODE.items() if name in CODES)
    assert set(TO_LANGUAGE_CODE) - set(CODES) <= set(LANGUAGES) | {"haitian creole"}


@pytest.mark.parametrize("wanted", ["German", "de", "DE", "<|de|>", "de-DE", "de_AT", " german "])
def test_a_language_by_any_name(wanted):
    assert language_code(wanted, {"en", "de"}) == "de"


def test_a_language_that_the_model_does_not_have():
    with pytest.raises(UsageError, match=r"no language 'germn'; did you mean german"):
        language_code("germn", {"en", "de"})
    with pytest.raises(UsageError, match=r"no language 'klingon'; known are de, en"):
        language_code("klingon", {"en", "de"})
    with pytest.raises(UsageError, match="no language 'fr'"):
        language_code("fr", {"en", "de"})
