"""Decoder, caches and batches against a reference without any cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxkit.errors import InputError, ResourceError
from onnxkit.generate.decoder import Batch, Decoder, as_float32
from onnxkit.runtime import RuntimeOptions, open_session
from tests.generate import decoder_graphs as graphs

KINDS: dict[str, dict[str, Any]] = {
    "growing": {},
    "growing, all logits": {"keep": False},
    "shared": {"shared": True},
    "shared, all logits": {"shared": True, "keep": False},
}
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}


def opened(**kind: Any) -> Decoder:
    return Decoder(open_session(graphs.decoder(**kind)), {})


@pytest.fixture(scope="module", params=KINDS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return opened(**KINDS[request.param])


def ids(*tokens: int) -> np.ndarray[Any, Any]:
    return np.array(tokens, np.int64)


def random_ids(seed: int, *lengths: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, graphs.VOCABULARY, length) for length in lengths]


def check(logits: Any, histories: list[Any], tolerance: float = 1e-4) -> None:
    wanted = np.stack([graphs.reference(np.array(history))[-1] for history in histories])
    np.testing.assert_allclose(logits, wanted, atol=tolerance)


def test_roles_tell_what_the_graph_has() -> None:
    roles = opened().roles
    assert (roles.ids, roles.mask, roles.positions) == ("input_ids", "attention_mask", "position_ids")
    assert roles.keep == "num_logits_to_keep" and roles.vocabulary == graphs.VOCABULARY
    assert [tensor.present for tensor in roles.cache[:2]] == ["present.0.key", "present.0.value"]
    assert not roles.shared and opened(shared=True).roles.shared
    assert opened(keep=False).roles.keep is None


def test_a_growing_cache_counts_twice() -> None:
    slot = graphs.LAYERS * 2 * graphs.HEAD * 4
    assert (opened().slot_bytes, opened(shared=True).slot_bytes) == (2 * slot, slot)


def test_prompts_of_unequal_length_and_steps(decoder: Decoder) -> None:
    prompts = random_ids(0, 5, 9, 1)
    histories = [list(prompt) for prompt in prompts]
    batch, logits = decoder.prefill(prompts, announced=(3, 16))
    for _ in range(4):
        check(logits, histories)
        tokens = logits.argmax(-1)
        for history, token in zip(histories, tokens, strict=True):
            history.append(int(token))
        logits = batch.step(tokens)
    check(logits, histories)
    assert batch.used == 13 and batch.pads.tolist() == [4, 0, 8]


def test_the_only_row_is_continued_and_truncated(decoder: Decoder) -> None:
    (text,) = random_ids(1, 30)
    batch, logits = decoder.prefill([text[:7]], announced=(1, 8))
    check(logits, [text[:7]])
    logits = batch.extend(text[7:20], keep=5)
    np.testing.assert_allclose(logits, graphs.reference(text[:20])[-5:], atol=1e-4)
    batch.truncate(10)
    check(batch.extend(text[20:]), [[*text[:10], *text[20:]]])
    check(batch.step(text[:1]), [[*text[:10], *text[20:], text[0]]])


def test_long_inputs_are_run_in_chunks(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxkit.generate.decoder.CHUNK", 7)
    (text,) = random_ids(2, 40)
    batch, logits = decoder.prefill([text], announced=(1, 40))
    check(logits, [text])
    assert batch.used == 40


@pytest.mark.parametrize(
    ("rope", "length", "runs"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 39}, 40, [40]),
        ({"rope_type": "longrope", "original_max_position_embeddings": 40}, 40, [20, 20]),
        ({"rope_type": "llama3", "original_max_position_embeddings": 16}, 40, [20, 20]),
    ],
)
def test_texts_whose_length_turns_them_are_run_at_once(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, rope: dict[str, Any], length: int, runs: list[int]
) -> None:
    """A chunk does not know how long the whole will be, which LongRoPE's factors follow from."""
    monkeypatch.setattr("onnxkit.generate.decoder.CHUNK", 20)
    made = Decoder(decoder.session, {"rope_scaling": rope})
    (text,) = random_ids(2, length)
    batch = made.batch(1, announced=(1, length))
    seen = []
    run = batch._run
    monkeypatch.setattr(batch, "_run", lambda ids, keep: seen.append(ids.shape[1]) or run(ids, keep=keep))
    check(batch.extend(text), [text])
    assert seen == runs


def test_a_text_that_cannot_be_run_at_once_is_refused_before(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16}
    made = Decoder(decoder.session, {"rope_scaling": rope})
    monkeypatch.setattr("onnxkit.generate.budget._free", lambda: 100)
    assert not made.runs_whole(16)
    with pytest.raises(ResourceError, match="scores of 40 tokens, which this model must run at once, take"):
        made.batch(1, announced=(1, 40)).extend(random_ids(2, 40)[0])


def test_a_buffer_grows_beyond_what_was_announced() -> None:
    batch, logits = opened(shared=True).prefill(random_ids(3, 3), announced=(1, 4))
    histories = [list(random_ids(3, 3)[0])]
    for _ in range(graphs.CONTEXT - 4):
        tokens = logits.argmax(-1).reshape(-1)
        histories[0].append(int(tokens[0]))
        logits = batch.step(tokens)
    check(logits, histories)


ROW_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("select"), st.lists(st.integers(0, 63), min_size=1, max_size=5)),
        st.tuples(st.just("join"), st.lists(st.integers(1, 12), min_size=1, max_size=2)),
        st.tuples(st.just("step"), st.just([])),
    ),
    min_size=1,
    max_size=7,
)


@pytest.mark.parametrize("kind", ["growing", "shared"])
@given(operations=ROW_OPERATIONS, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rows_that_leave_join_repeat_and_move_stay_right(
    kind: str, operations: list[tuple[str, list[int]]], seed: int
) -> None:
    """Whatever happens to the rows, each one's logits are those of its own tokens."""
    decoder = DECODERS[kind]
    rng = np.random.default_rng(seed)
    prompts = random_ids(seed, 4, 8)
    histories = [list(prompt) for prompt in prompts]
    batch, _ = decoder.prefill(prompts, announced=(4, 20))
    for name, numbers in [*operations, ("step", [])]:
        if name == "select":
            rows = np.array(numbers) % batch.rows
            batch.select(rows)
            histories = [list(histories[row]) for row in rows]
        elif name == "join" and batch.rows < 8:
            joining = random_ids(seed + 1, *numbers)
            batch.join(decoder.prefill(joining, announced=(len(joining), 12))[0])
            histories += [list(prompt) for prompt in joining]
        else:
            tokens = rng.integers(0, graphs.VOCABULARY, batch.rows)
            for history, token in zip(histories, tokens, strict=True):
                history.append(int(token))
            check(batch.step(tokens), histories)
    assert_contiguous(batch, histories)


DECODERS = {"growing": opened(), "shared": opened(shared=True)}


def assert_contiguous(batch: Batch, histories: list[list[int]]) -> None:
    assert (batch.used - batch.pads).tolist() == [len(history) for history in histories]


def test_padding_that_all_rows_share_goes() -> None:
    batch, _ = DECODERS["shared"].prefill(random_ids(4, 3, 30), announced=(2, 40))
    batch.select(np.array([0]))
    assert batch.used == 3 and batch.pads.tolist() == [0]


@pytest.mark.parametrize(
    ("kind", "dtype"), [({}, "float16"), ({}, "bfloat16"), ({"shared": True}, "float16")], ids=str
)
def test_half_precision_caches(kind: dict[str, Any], dtype: str) -> None:
    decoder = opened(cache=dtype, **kind)
    prompts = random_ids(5, 6, 3)
    batch, logits = decoder.prefill(prompts, announced=(2, 9))
    check(logits, [list(prompt) for prompt in prompts], TOLERANCE[dtype])
    batch.select(np.array([1, 0]))
    logits = batch.step(ids(7, 8))
    check(logits, [[*prompts[1], 7], [*prompts[0], 8]], TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [{}, {"shared": True, "cache": "float16"}], ids=str)
def test_rows_on_a_device(kind: dict[str, Any]) -> None:
    decoder = Decoder(open_session(graphs.decoder(**kind), RuntimeOptions(ep="cuda")), {})
    prompts = random_ids(6, 6, 3)
    batch, _ = decoder.prefill(prompts, announced=(3, 16))
    batch.select(np.array([1, 0, 0]))
    batch.join(decoder.prefill(random_ids(7, 9), announced=(1, 9))[0])
    histories = [prompts[1], prompts[0], prompts[0], *random_ids(7, 9)]
    logits = batch.step(ids(1, 2, 3, 4))
    check(logits, [[*text, token] for text, token in zip(histories, (1, 2, 3, 4), strict=True)], 2e-2)


def test_logits_of_other_types_come_as_float32() -> None:
    halves = np.array([1.5, -2], np.float16)
    assert as_float32(halves, "float16").dtype == np.float32
    bits = np.array([0x3FC0, 0xC000], np.uint16)  # bfloat16: the upper half of float32
    assert as_float32(bits, "bfloat16").tolist() == [1.5, -2.0]


def graph_with(*names: str, outputs: tuple[str, ...] = ("logits",)) -> bytes:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT if "." in name else TensorProto.INT64, ["n"])
        for name in names
    ]
    nodes = [helper.make_node("Shape", [names[0]], [name]) for name in outputs]
    results = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in outputs]
    graph = helper.make_graph(nodes, "graph", inputs, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (graph_with("pixel_values"), "no decoder"),
        (graph_with("input_ids", outputs=("hidden",)), "no decoder"),
        (graph_with("input_ids"), "without past_key_values"),
        (graph_with("input_ids", "past_key_values.0.key"), r"is \(n\), not \(batch, heads, past, width\)"),
    ],
)
def test_graphs_that_are_no_decoder_with_a_cache(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Decoder(open_session(content), {})


def test_an_input_of_unknown_meaning_is_named() -> None:
    model = graphs.decoder().replace(b"position_ids", b"weather_code")
    with pytest.raises(InputError, match="weather_code"):
        Decoder(open_session(model), {})


def test_prompts_that_the_embedding_does_not_know(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="Gather"):
        decoder.prefill([ids(graphs.VOCABULARY + 5)], announced=(1, 4))


def test_chunks_get_shorter_where_scores_get_large(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoder.chunk(0) == 256
    monkeypatch.setattr("onnxkit.generate.decoder._SCORE_BYTES", 4 * 300 * 9)  # one head, as the cache has
    assert [decoder.chunk(held) for held in (0, 44, 2444, 10_000)] == [10, 9, 1, 1]
    (text,) = random_ids(2, 40)
    _, logits = decoder.prefill([text], announced=(1, 40))
    check(logits, [text])
