"""Cached attention on ONNX Runtime's GroupQueryAttention against the primitives it replaces."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxkit.errors import InputError
from onnxkit.graph import ort_cpu, ort_cuda
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.kv_cache import CACHE, share_buffers
from onnxkit.graph.lowering import lower
from onnxkit.runtime import RuntimeOptions, open_session
from tests.decoder_graphs import DecoderSpec, build_decoder, feeds

ONE = RuntimeOptions(threads=1)
NO_TILES = "ORT_GQA_DISABLE_FLASH_ATTENTION"
PADDED = {
    "llama": DecoderSpec(),
    "length from the past's shape": DecoderSpec(past_shape=True),
    "as many kv heads": DecoderSpec(kv_heads=4, rotary=False, biased=True, tied=False),
    "one kv head": DecoderSpec(kv_heads=1),
    "window": DecoderSpec(window=3),
    "soft cap": DecoderSpec(softcap=2.0),
    "sinks": DecoderSpec(sinks=True, window=4),
    "position bias": DecoderSpec(position_bias=True, rotary=False),
    "heads first": DecoderSpec(heads_first=True),
}
UNPADDED = {
    "t5": DecoderSpec(padding=False, cross=True, kv_heads=4, rotary=False, position_bias=True),
    "whisper": DecoderSpec(padding=False, cross=True, kv_heads=4, rotary=False),
}
CASES = {
    "prefill": {"new": 9},
    "left padding": {"new": 9, "pads": (0, 3, 7)},
    "decode": {"new": 1, "past": 8},
    "decode, left padding": {"new": 1, "past": 8, "pads": (0, 3, 7)},
    "continuation": {"new": 4, "past": 8, "pads": (2,)},
    "first token": {"new": 1},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, request):
    """A decoder, a session of its primitives and one of its lowered form."""
    spec, folder = {**PADDED, **UNPADDED}[request.param], tmp_path_factory.mktemp("lower")
    save_model(build_decoder(spec), folder / "primitive.onnx")
    model = load_model(folder / "primitive.onnx")
    result = lower(model, ort_cpu.LOWERINGS)
    assert result.lowered["cached-attention"] == spec.layers
    assert not result.kept
    assert share_buffers(model) is spec.padding
    save_model(model, folder / "lowered.onnx")
    metadata = load_model(folder / "lowered.onnx").metadata_props
    assert metadata.get(CACHE) == ("shared" if spec.padding else None)
    return spec, *(open_session(folder / name, ONE) for name in ("primitive.onnx", "lowered.onnx"))


def agree(before, after, pads, total):
    """Equal wherever no padding is: logits `[B,S,V]`, keys and values `[B,H,T,D]` up to the total."""
    valid = np.arange(total) >= np.array(pads)[:, None]
    for name, right in before.items():
        if name == "logits":
            got, keep = after[name], valid[:, total - right.shape[1] :]
        else:
            got, right, keep = after[name][:, :, :total].swapaxes(1, 2), right.swapaxes(1, 2), valid
        np.testing.assert_allclose(got[keep], right[keep], atol=1e-5 * np.abs(right).max(), err_msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pair", [*PADDED, *UNPADDED], indirect=True)
def test_lowered_decoder_equals_its_primitives(pair, case):
    spec, before, after = pair
    case = CASES[case]
    rows, total = len(case.get("pads", (0,))), case["new"] + case.get("past", 0)
    if not spec.padding:
        case = {**case, "pads": (0,) * rows}
    right = before.run(feeds(spec, **case))
    pads = case.get("pads", (0,))
    agree(right, after.run(feeds(spec, **case)), pads, total)
    if spec.padding:
        agree(right, after.run(feeds(spec, **case, buffer=20)), pads, total)


def test_heads_that_the_operator_does_not_take_stay_primitive():
    model = build_decoder(DecoderSpec(size=4))
    result = lower(model, ort_cpu.LOWERINGS)
    assert result.lowered["cached-attention"] == 0
    assert "multiples of 8" in next(iter(result.kept["attention"]))
    assert not share_buffers(model)


def test_cuda_takes_16_bits_only():
    assert lower(build_decoder(), ort_cuda.LOWERINGS).lowered["cached-attention"] == 0
    assert lower(build_decoder(), ort_cuda.FLOAT16).lowered["cached-attention"] == 2
    assert lower(build_decoder(DecoderSpec(sinks=True)), ort_cuda.FLOAT16).lowered["cached-attention"] == 0


def test_the_masks_and_lengths_of_all_layers_are_made_once():
    model = build_decoder(DecoderSpec(layers=3))
    lower(model, ort_cpu.LOWERINGS)
    attentions = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == 3
    for position in (5, 6, 10):  # seqlens_k, total_sequence_length, attention_bias
        assert len({node.inputs[position] for node in attentions}) == 1
    turns = [node for node in model.graph if node.op_type == "RotaryEmbedding" and node.outputs[0].uses()]
    for position in (2, 3):  # the keys' table, and the queries', which is scaled
        assert len({node.inputs[position] for node in turns}) == 2


@pytest.mark.parametrize(
    ("spec", "means"),
    [
        (DecoderSpec(), "RotaryEmbedding"),
        (DecoderSpec(heads_first=True), "Mul"),
        (DecoderSpec(rotary=False), "Mul"),
    ],
    ids=["rotated", "heads first", "not rotated"],
)
def test_on_the_cpu_queries_are_scaled_instead_of_scores(spec, means):
    model = build_decoder(spec)
    lower(model, ort_cpu.LOWERINGS)
    attentions = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for node in attentions:
        assert node.attributes["scale"].as_float() == 1.0
        made = node.inputs[0].producer()
        while made.op_type in ("Reshape", "Transpose"):
            made = made.inputs[0].producer()
        assert made.op_type == means
    assert len(attentions) == spec.layers


# What ONNX Runtime's operator does by itself: why the lowering is as it is. Should one of these fail with a
# new version, the lowering may become simpler.


def attention(inputs: Mapping[str, np.ndarray], names: Sequence[str], options=ONE, **attributes):
    """Run one GroupQueryAttention of two heads over one, of width 16."""
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    infos = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT32 if array.dtype == np.int32 else kinds[array.dtype.kind],
            [f"{name}_{axis}" for axis in range(array.ndim)],
        )
        for name, array in inputs.items()
    ]
    node = helper.make_node(
        "GroupQueryAttention", names, ["o", "k", "v"], domain="com.microsoft", num_heads=2, kv_num_heads=1,
        **attributes,
    )  # fmt: skip
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("o", "k", "v")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", infos, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return open_session(model.SerializeToString(), options).run(dict(inputs))


PLAIN = ("query", "key", "value", "past_key", "past_value", "lengths", "total")


def one_call(rows: int, new: int, past: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = {"query": (rows, new, 32), "key": (rows, new, 16), "value": (rows, new, 16)}
    sizes |= dict.fromkeys(("past_key", "past_value"), (rows, 1, past, 16))
    made = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    lengths = np.full(rows, past + new - 1, np.int32)
    return {**made, "lengths": lengths, "total": np.array(past + new, np.int32)}


def test_runtime_attends_to_padded_slots_unless_told_by_a_bias():
    given = one_call(rows=2, new=1, past=5)
    bias = np.zeros((2, 1, 1, 6), np.float32)
    bias[1, ..., :3] = np.finfo(np.float32).min  # the second row has three padded slots
    right = attention({**given, "bias": bias}, [*PLAIN, "", "", "", "bias"])["o"]
    wrong = attention(given, PLAIN)["o"]
    np.testing.assert_allclose(wrong[0], right[0], atol=1e-6)
    assert np.abs(wrong[1] - right[1]).max() > 0.05


def test_runtime_turns_every_row_of_a_prompt_by_the_first_rows_positions():
    given = one_call(rows=2, new=4, past=0)
    angles = np.outer(np.arange(8), 10.0 ** (-np.arange(8) / 2)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3], [0, 0, 0, 1]])  # the second row is left-padded
    tables = {"cos": np.cos(angles), "sin": np.sin(angles), "positions": positions}
    keys = attention({**given, **tables}, [*PLAIN, *tables], do_rotary=1)["k"]

    def turned(row: int, at: np.ndarray) -> np.ndarray:
        x, cos, sin = given["key"][row], np.cos(angles)[at], np.sin(angles)[at]
        return np.concatenate([x[:, :8] * cos - x[:, 8:] * sin, x[:, 8:] * cos + x[:, :8] * sin], -1)

    np.testing.assert_allclose(keys[0, 0], turned(0, positions[0]), atol=1e-6)
    np.testing.assert_allclose(keys[1, 0], turned(1, positions[0]), atol=1e-6)  # row 0's positions
    assert np.abs(keys[1, 0] - turned(1, positions[1])).max() > 0.1


def test_runtime_refuses_chunks_of_several_rows():
    with pytest.raises(InputError, match="batch_size must be 1"):
        attention(one_call(rows=2, new=3, past=4), PLAIN)


def test_runtime_writes_into_a_longer_buffer_and_returns_all_of_it():
    given = one_call(rows=1, new=1, past=5)
    longer = {
        name: np.concatenate([given[name], np.full((1, 1, 7, 16), 9.0, np.float32)], axis=2)
        for name in ("past_key", "past_value")
    }
    right, got = attention(given, PLAIN), attention({**given, **longer}, PLAIN)
    assert got["k"].shape == (1, 1, 12, 16)
    np.testing.assert_allclose(got["o"], right["o"], atol=1e-6)
    np.testing.assert_array_equal(got["k"][:, :, :6], right["k"])


def test_whole_scores_choose_the_kernel_for_one_session_only(monkeypatch):
    given = one_call(rows=1, new=1, past=99)
    whole = RuntimeOptions(threads=1, whole_scores=True)
    tiled = attention(given, PLAIN)["o"]
    chosen = attention(given, PLAIN, whole)["o"]
    np.testing.assert_allclose(chosen, tiled, atol=1e-6)
    assert (chosen != tiled).any()  # another order of the sums
    assert NO_TILES not in os.environ
    monkeypatch.setenv(NO_TILES, "0")
    np.testing.assert_array_equal(attention(given, PLAIN, whole)["o"], tiled)
    assert os.environ[NO_TILES] == "0"
