"""Seeded inputs for models of all kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.artifact.configuration import shortest_waveform
from onnxkit.errors import InputError
from onnxkit.measure.cases import (
    Shape,
    check_shape,
    longest_sequence,
    make_feeds,
    random_cases,
    ten_seconds,
)
from onnxkit.measure.geometry import Geometry, geometry
from onnxkit.runtime import TensorSpec

BATCH, SEQUENCE = "batch_size", "sequence_length"
BERT = {
    "model_type": "bert", "vocab_size": 30, "max_position_embeddings": 20, "type_vocab_size": 2,
    "pad_token_id": 3, "bos_token_id": 1, "num_attention_heads": 2,
}  # fmt: skip


def ids(name: str, *shape: int | str | None, dtype: str = "int64") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape or (BATCH, SEQUENCE))


TOKENS = [ids("input_ids"), ids("attention_mask"), ids("token_type_ids")]


def cases(config: dict[str, Any], *specs: TensorSpec, **options: Any) -> dict[str, dict[str, Any]]:
    model: Any = SimpleNamespace(
        config=config, path="dir", components={"model": SimpleNamespace(inputs=specs)}
    )
    return dict(random_cases(model, **options))


def test_text_cases_cover_what_breaks_graphs() -> None:
    found = cases(BERT, *TOKENS)
    assert list(found) == ["batch 1", "batch 4", "right padding", "left padding", "length 1", "length 20"]
    assert found["length 20"]["input_ids"].shape == (1, 20)
    assert found["length 1"]["input_ids"].shape[1] == 1
    right, left = (found[f"{side} padding"]["attention_mask"] for side in ("right", "left"))
    assert right[:, 0].all() and not right[:, -1].all()
    assert left[:, -1].all() and not left[:, 0].all()
    for feeds in found.values():
        real = feeds["attention_mask"] == 1
        assert feeds["input_ids"].dtype == np.int64
        assert feeds["input_ids"].max() < 30
        assert not np.isin(feeds["input_ids"][real], [1, 3]).any()
        assert (feeds["input_ids"][~real] == 3).all()
        assert set(np.unique(feeds["token_type_ids"])) <= {0, 1}


def floats(name: str, *shape: int | str | None) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


@pytest.mark.parametrize("name", ["input_values", "input", "speech"])
def test_a_waveform_is_as_long_as_a_frame_whatever_its_name(name: str) -> None:
    """Convolutions of a config.json make their first frame of 2,047 samples, wav2vec2's of 400."""
    kernels, strides = [127, 7, 3, 3], [64, 8, 2, 2]
    least = shortest_waveform({"conv_kernel": kernels, "conv_stride": strides})
    frames = least
    for kernel, stride in zip(kernels, strides, strict=True):
        frames = (frames - kernel) // stride + 1
    assert frames == 1
    found = cases({"conv_kernel": kernels, "conv_stride": strides}, floats(name, BATCH, "samples"))
    assert all(feeds[name].shape[1] >= least for feeds in found.values())


def test_a_recurrent_state_has_its_batch_second() -> None:
    """silero-vad: [layers, batch, width], where the batch has no name, beside a waveform."""
    found = cases({}, floats("input", None, None), floats("state", 2, None, 128))
    assert found["batch 4"]["state"].shape == (2, 4, 128)
    assert found["batch 4"]["input"].shape == (4, 256)
    fixed = cases({}, floats("input", "batch_size", 3, "frames", 160), floats("h0", 4, 1, 64))
    assert list(fixed) == ["batch 1"] and fixed["batch 1"]["h0"].shape == (4, 1, 64)


def test_an_image_is_known_by_its_channels() -> None:
    """PaddleOCR's x [?, 3, ?, ?]: sides that graphs pool by 32; also with the channels last."""
    found = cases({}, floats("x", None, 3, None, None))
    assert found["batch 4"]["x"].shape == (4, 3, 64, 64)
    assert found["image 128 x 64"]["x"].shape == (1, 3, 128, 64)
    last = cases({}, floats("serving_default", None, None, None, 3))
    assert last["image 128 x 64"]["serving_default"].shape == (1, 128, 64, 3)


def test_seeds() -> None:
    first, again, other = (cases(BERT, *TOKENS, seed=seed)["batch 4"]["input_ids"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_positions_after_the_padding_id_are_not_all_usable() -> None:
    found = cases({**BERT, "model_type": "roberta", "pad_token_id": 1}, *TOKENS)
    assert "length 18" in found


def test_a_foreign_graph_without_config() -> None:
    found = cases({}, ids("input_ids", dtype="int32"), ids("attention_mask", None, None))
    assert list(found)[-1] == "length 128"
    assert found["batch 4"]["input_ids"].dtype == np.int32


def test_fixed_dimensions_are_kept() -> None:
    found = cases(BERT, ids("input_ids", 1, 12), ids("attention_mask", 1, 12))
    assert {feeds["input_ids"].shape for feeds in found.values()} == {(1, 12)}
    found = cases({}, ids("input_ids", 3, 12))
    assert [feeds["input_ids"].shape for feeds in found.values()] == [(3, 12)]


def test_images() -> None:
    fixed = TensorSpec(name="pixel_values", dtype="float32", shape=(BATCH, 1, 8, 8))
    found = cases({"image_size": 8, "num_channels": 1}, fixed)
    assert list(found) == ["batch 1", "batch 4", "batch 3", "blank"]
    assert not found["blank"]["pixel_values"].any()
    free = TensorSpec(name="pixel_values", dtype="float16", shape=(BATCH, "channels", "height", "width"))
    found = cases({"image_size": [8, 4], "num_channels": 1}, free)
    assert found["batch 3"]["pixel_values"].shape == (3, 1, 8, 4)
    assert found["batch 3"]["pixel_values"].dtype == np.float16
    assert found["image 16 x 4"]["pixel_values"].shape == (1, 1, 16, 4)


def test_audio() -> None:
    whisper = TensorSpec(name="input_features", dtype="float32", shape=(BATCH, 80, "frames"))
    found = cases({"num_mel_bins": 80, "max_source_positions": 50}, whisper)
    assert found["batch 1"]["input_features"].shape == (1, 80, 100)
    wave = TensorSpec(name="input_values", dtype="float32", shape=(BATCH, "samples"))
    assert cases({}, wave)["batch 4"]["input_values"].shape == (4, 960 + 384 * 16)


def test_frames_and_their_mask() -> None:
    banks = TensorSpec(name="input_features", dtype="float32", shape=(BATCH, "frames", 20))
    found = cases({"max_source_positions": 600}, banks, ids("attention_mask"))
    assert found["right padding"]["input_features"].shape == (3, 16, 20)
    assert found["right padding"]["attention_mask"].shape == (3, 16)
    assert ten_seconds([banks]) == 1000
    assert ten_seconds([ids("input_ids")]) is None


def test_a_past_and_its_mask() -> None:
    past = TensorSpec(
        name="past_key_values.0.key", dtype="float32", shape=(BATCH, 2, "past_sequence_length", 4)
    )
    mask = ids("attention_mask", BATCH, "past_sequence_length + sequence_length")
    feeds = cases(BERT, ids("input_ids"), mask, past, ids("position_ids"))["continuation"]
    length = feeds["past_key_values.0.key"].shape[2]
    assert length > 0
    assert feeds["attention_mask"].shape[1] == length + feeds["input_ids"].shape[1]
    assert (feeds["position_ids"][0] == length + np.arange(feeds["input_ids"].shape[1])).all()


def test_what_is_no_tensor_is_refused() -> None:
    odd = TensorSpec(name="x", dtype="seq(tensor(float))", shape=())
    with pytest.raises(InputError, match="cannot make one"):
        make_feeds([odd], Geometry(), Shape(), np.random.default_rng(0))


def test_a_conflicting_shape_is_refused() -> None:
    with pytest.raises(InputError, match="batch fixed to 2: 4 cannot be fed"):
        check_shape([ids("input_ids", 2, SEQUENCE)], Geometry(), Shape(batch=4))
    with pytest.raises(InputError, match="20 positions: 21 tokens"):
        check_shape(TOKENS, geometry(BERT), Shape(sequence=21))


def test_an_unknown_component_is_named() -> None:
    model: Any = SimpleNamespace(config={}, path="dir", components={"decoder_model": None})
    with pytest.raises(InputError, match="it has decoder_model"):
        random_cases(model)


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from(["none", "left", "right"]), st.integers(0, 99))
def test_any_shape_has_one_real_token_in_each_sample(
    batch: int, sequence: int, padding: Any, seed: int
) -> None:
    shape = Shape(batch=batch, sequence=sequence, padding=padding)
    feeds = make_feeds(TOKENS, Geometry(), shape, np.random.default_rng(seed))
    mask = feeds["attention_mask"]
    assert mask.shape == feeds["input_ids"].shape == (batch, sequence)
    assert (mask.sum(axis=1) >= 1).all()
    assert mask[0].all()
    assert padding != "none" or mask.all()


_ODD = st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.booleans()
_NAMES = sorted({*BERT, "image_size", "text_config", "bos_token_id"} - {"model_type"})


@given(st.dictionaries(st.sampled_from(_NAMES), _ODD))
def test_odd_configs_are_only_unknown(config: dict[str, Any]) -> None:
    known = geometry(config)
    assert 1 <= longest_sequence(known) <= 2048
