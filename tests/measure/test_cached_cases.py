"""Feeds for graphs with a cache, and which positions of their outputs count."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.measure.agreement import valid_positions
from onnxkit.measure.cached_cases import Step, cached_feeds, is_cached, longest_past, steps
from onnxkit.measure.geometry import Geometry
from onnxkit.runtime import TensorSpec

KNOWN = Geometry(vocab_size=50, pad_id=0, special_ids=frozenset({0, 1}), decoder_positions=32)
B, S, P = "batch_size", "sequence_length", "past_sequence_length"


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def ids(name: str, *shape: str) -> TensorSpec:
    return spec(name, *shape, dtype="int64")


DECODER = (
    ids("input_ids", B, S),
    ids("attention_mask", B, "total_sequence_length"),
    ids("position_ids", B, S),
    *(spec(f"past_key_values.{layer}.{half}", B, 2, P, 8) for layer in range(2) for half in ("key", "value")),
)
PAIR = (
    ids("input_ids", B, S),
    ids("encoder_attention_mask", B, "encoder_sequence_length"),
    spec("past_key_values.0.decoder.key", B, 2, P, 8, dtype="float16"),
    spec("past_key_values.0.encoder.key", B, 2, "encoder_sequence_length", 8),
)


@given(
    st.builds(
        Step,
        batch=st.integers(1, 4),
        sequence=st.integers(1, 6),
        past=st.integers(0, 6),
        padded=st.booleans(),
    ),
    st.integers(0, 99),
)
def test_a_padded_past_goes_on_in_the_mask_and_the_positions(step: Step, seed: int) -> None:
    feeds = cached_feeds(DECODER, KNOWN, step, np.random.default_rng(seed))
    mask, positions = feeds["attention_mask"], feeds["position_ids"]
    assert mask.shape == (step.batch, step.past + step.sequence)
    assert (np.diff(mask, axis=1) >= 0).all()  # padding stands at the left
    assert (mask[:, -1] == 1).all()
    assert mask[0].all()
    for row in range(step.batch):
        real = mask[row].astype(bool)
        counted = np.where(real, real.cumsum() - 1, 0)[step.past :]
        np.testing.assert_array_equal(positions[row], counted)
        new = real[step.past :]
        assert (feeds["input_ids"][row][~new] == 0).all()
        assert not np.isin(feeds["input_ids"][row][new], [0, 1]).any()
    assert feeds["past_key_values.1.value"].shape == (step.batch, 2, step.past, 8)


def test_keys_are_exact_in_every_float_type() -> None:
    feeds = cached_feeds(PAIR, KNOWN, Step(batch=3, past=4, padded=True), np.random.default_rng(0))
    own, cross = feeds["past_key_values.0.decoder.key"], feeds["past_key_values.0.encoder.key"]
    assert (own.dtype, cross.dtype, own.shape[2], cross.shape[2]) == (np.float16, np.float32, 4, 9)
    assert (cross.astype(np.float16).astype(np.float32) == cross).all()
    mask = feeds["encoder_attention_mask"]
    assert (mask[:, 0] == 1).all()
    assert not mask.all()


def test_an_encoder_of_one_length_fixes_its_keys() -> None:
    fixed = (*PAIR[:1], PAIR[2], spec("past_key_values.0.encoder.key", B, 2, 50, 8))
    feeds = cached_feeds(fixed, KNOWN, Step(batch=2), np.random.default_rng(0))
    assert feeds["past_key_values.0.encoder.key"].shape == (2, 2, 50, 8)


def test_the_steps_of_a_graph() -> None:
    assert is_cached(DECODER)
    named = dict(steps(DECODER, KNOWN, 2048))
    assert list(named) == ["prefill", "left padding", "decode", "continuation", "length 32"]
    assert named["length 32"].past + named["length 32"].sequence == 32
    assert all(step.batch == 1 for step in named.values() if step.past and step.sequence > 1)
    assert "padded encoder" in dict(steps(PAIR, KNOWN, 2048))
    one = (spec("input_ids", B, 1, dtype="int64"), *PAIR[1:])
    assert all(step.sequence == 1 for _, step in steps(one, KNOWN, 2048))


def test_memory_bounds_the_longest_past(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from onnxkit.machine import Memory
    from onnxkit.measure import cached_cases

    small = Memory(total_bytes=1 << 20, available_bytes=1 << 16)
    monkeypatch.setattr(cached_cases, "memory", lambda: small)
    a_token = 4 * 2 * 8 * 4
    assert longest_past(DECODER, KNOWN, 2048) == (1 << 16) // 4 // (4 * a_token)


def test_padding_never_counts() -> None:
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    feeds = {"input_ids": np.zeros((2, 3)), "attention_mask": mask}
    logits = valid_positions(feeds, np.zeros((2, 3, 7)), name="logits")
    np.testing.assert_array_equal(logits, mask[:, 1:].astype(bool))
    present = valid_positions(feeds, np.zeros((2, 5, 4, 8)), name="present.0.key")
    assert present is not None
    assert present.shape == (2, 5, 4)
    np.testing.assert_array_equal(present[:, 3], mask.astype(bool))
    assert valid_positions(feeds, np.zeros((2, 5, 9, 8)), name="present.0.encoder.key") is None
