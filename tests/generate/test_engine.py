"""The engine: batches, admission, encoder-decoders, speculation, conversations, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, ResourceError, UsageError
from onnxkit.generate import Completion, Engine, Request
from onnxkit.generate.budget import Budget, context_limit, encoder_limit
from onnxkit.generate.decoder import Decoder
from onnxkit.generate.encoder import Encoder
from onnxkit.generate.groups import Move
from onnxkit.generate.options import GenerationOptions
from onnxkit.generate.schedule import _without_holes
from onnxkit.generate.speculation import NgramProposer
from onnxkit.machine import Memory
from onnxkit.progress import Progress
from onnxkit.runtime import open_session
from tests.generate import decoder_graphs as graphs


@pytest.fixture(scope="module", params=["growing", "shared"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return Decoder(open_session(graphs.decoder(shared=request.param == "shared")), {})


@pytest.fixture(scope="module")
def seq2seq() -> Engine:
    decoder = Decoder(open_session(graphs.decoder(cross=True)), {})
    encoder = Encoder(open_session(graphs.encoder()), decoder.roles)
    return Engine(decoder, encoder, limit=graphs.CONTEXT, batch_size=3)


def engine(decoder: Decoder, **settings: Any) -> Engine:
    return Engine(decoder, None, **{"limit": graphs.CONTEXT, "batch_size": 4, **settings})


def request(*prompt: int, **options: Any) -> Request:
    return Request(prompt=np.array(prompt, np.int64), options=GenerationOptions(**options))


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, graphs.VOCABULARY, rng.integers(1, longest)).tolist() for _ in range(count)]


def tokens(completion: Completion) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in completion.sequences]


def test_many_prompts_of_unequal_length_and_output(decoder: Decoder) -> None:
    texts = prompts(25)
    lengths = [1 + index * 7 % 20 for index in range(25)]
    asked = (request(*text, max_new_tokens=n) for text, n in zip(texts, lengths, strict=True))
    found = dict(engine(decoder).generate(asked))
    assert sorted(found) == list(range(25))
    for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        assert tokens(found[index]) == [graphs.greedy(text, length)]
        assert found[index].prompt_tokens == len(text)
        assert found[index].sequences[0].finish_reason == "length"


def test_requests_are_read_as_places_get_free(decoder: Decoder) -> None:
    read = 0

    def stream() -> Iterator[Request]:
        nonlocal read
        for text in prompts(1000):
            read += 1
            yield request(*text, max_new_tokens=3)

    results = engine(decoder).generate(stream())
    for _ in range(20):
        next(results)
    assert read <= 20 + 4 * 5


def test_tokens_are_told_as_they_come_and_eos_ends(decoder: Decoder) -> None:
    text = [5]
    wanted = graphs.greedy(text, 12)
    end = wanted.index(10)
    told: list[tuple[int, int]] = []
    ((index, found),) = engine(decoder).generate(
        [request(*text, max_new_tokens=12, eos_token_ids=(10,))],
        on_token=lambda index, token: told.append((index, token)),
    )
    assert tokens(found) == [wanted[:end]]
    assert found.sequences[0].finish_reason == "stop"
    assert told == [(index, token) for token in wanted[:end]]
    assert found.stats.new_tokens == end and found.stats.steps == end
    assert 0 < found.stats.first_token_s <= found.stats.seconds


class StopAt:
    def __init__(self, token: int) -> None:
        self.token = token

    def push(self, token: int) -> bool:
        return token == self.token


def test_a_stop_check_ends_a_sequence_and_keeps_its_token(decoder: Decoder) -> None:
    asked = dataclasses.replace(request(1, 2, 3, max_new_tokens=12), stop=lambda: StopAt(27))
    ((_, found),) = engine(decoder).generate([asked])
    assert tokens(found) == [[7, 11, 11, 11, 11, 11, 0, 27]]
    assert found.sequences[0].finish_reason == "stop"


class Odd:
    """Allows odd tokens, and is finished with the third."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def finished(self) -> bool:
        return self.count == 3

    @property
    def complete(self) -> bool:
        return self.count > 0

    def mask(self, left: int | None = None) -> np.ndarray[Any, Any]:
        odd: np.ndarray[Any, Any] = np.arange(graphs.VOCABULARY) % 2 == 1
        return odd

    def accept(self, token: int) -> None:
        assert token % 2 == 1
        self.count += 1

    def fork(self) -> Odd:
        copy = Odd()
        copy.count = self.count
        return copy


@pytest.mark.parametrize("beams", [1, 3])
def test_a_constraint_decides(decoder: Decoder, beams: int) -> None:
    asked = dataclasses.replace(request(1, 2, max_new_tokens=9, num_beams=beams), constraint=Odd)
    ((_, found),) = engine(decoder).generate([asked])
    assert len(found.sequences[0].tokens) == 3 and all(token % 2 for token in found.sequences[0].tokens)
    assert found.sequences[0].finish_reason == "stop"
    short = dataclasses.replace(request(1, 2, max_new_tokens=2), constraint=Odd)
    ((_, found),) = engine(decoder).generate([short])
    assert found.sequences[0].finish_reason == "stop"  # cut, but complete


@pytest.mark.parametrize("beams", [1, 2])
def test_a_rule_sees_the_new_tokens_and_rewrites_logits(decoder: Decoder, beams: int) -> None:
    def count_up(new: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        result = np.full_like(logits, -50)
        result[3 + len(new)] = 0
        return result

    asked = dataclasses.replace(request(1, max_new_tokens=4, num_beams=beams), rule=count_up)
    ((_, found),) = engine(decoder).generate([asked])
    assert tokens(found)[0] == [3, 4, 5, 6]


def test_sequences_of_one_prompt_differ_and_repeat_with_the_seed(decoder: Decoder) -> None:
    options = {
        "max_new_tokens": 8,
        "do_sample": True,
        "num_return_sequences": 3,
        "seed": 7,
        "temperature": 3.0,
    }
    alone = dict(engine(decoder).generate([request(4, 5, **options)]))[0]
    among = dict(engine(decoder).generate([request(9, max_new_tokens=3), request(4, 5, **options)]))[1]
    assert len({sequence.tokens for sequence in alone.sequences}) == 3
    assert tokens(alone) == tokens(among)


def best_by_beams(text: list[int], beams: int, count: int) -> list[int]:
    """Beam search without an end of sequence, written out: keep the best `beams` of all continuations."""
    kept: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(count):
        following = []
        for score, new in kept:
            logits = graphs.reference(np.array([*text, *new]))[-1].astype(np.float64)
            logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            following += [(score + logs[token], [*new, token]) for token in range(len(logs))]
        kept = sorted(following, key=lambda item: -item[0])[:beams]
    return kept[0][1]


def test_beams_among_other_requests(decoder: Decoder) -> None:
    texts = prompts(6, seed=3)
    found = dict(
        engine(decoder).generate(
            request(*text, max_new_tokens=5, num_beams=1 + index % 3) for index, text in enumerate(texts)
        )
    )
    for index, text in enumerate(texts):
        assert tokens(found[index]) == [best_by_beams(text, 1 + index % 3, 5)]
    assert found[1].sequences[0].score is not None and found[0].sequences[0].score is None


def test_a_request_wider_than_the_batch_runs_alone(decoder: Decoder) -> None:
    found = dict(
        engine(decoder, batch_size=2).generate(
            [
                request(1, max_new_tokens=4),
                request(2, 3, max_new_tokens=4, num_beams=5),
                request(4, max_new_tokens=4),
            ]
        )
    )
    assert tokens(found[1]) == [best_by_beams([2, 3], 5, 4)]
    assert tokens(found[2]) == [graphs.greedy([4], 4)]


def log_probabilities(text: list[int], source: list[int] | None = None) -> np.ndarray[Any, Any]:
    logits = graphs.reference(np.array(text), None if source is None else np.array(source)).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked: np.ndarray[Any, Any] = logs[np.arange(len(text) - 1), text[1:]]
    return picked


def test_scores_in_chunks(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxkit.generate.engine._SCORE_BYTES", 4 * 40 * 7)
    text = prompts(1, seed=5)[0] * 2
    found = engine(decoder).score(np.array(text))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, log_probabilities(text), atol=1e-4)
    with pytest.raises(InputError, match="at least two tokens"):
        engine(decoder).score(np.array([1]))
    with pytest.raises(InputError, match="65 tokens, the model's context 64"):
        engine(decoder).score(np.ones(65, np.int64))


def test_a_sequence_gets_its_log_probability_when_asked(decoder: Decoder) -> None:
    asked = dataclasses.replace(request(1, 2, max_new_tokens=5), log_probabilities=True)
    ((_, found),) = engine(decoder).generate([asked])
    (sequence,) = found.sequences
    assert sequence.score == pytest.approx(log_probabilities([1, 2, *sequence.tokens])[1:].sum(), abs=1e-4)


class TestEncoderDecoder:
    def test_batches_of_unequal_inputs(self, seq2seq: Engine) -> None:
        sources = prompts(11, seed=6)
        found = dict(
            seq2seq.generate(
                Request(
                    prompt=np.array([1, 2][: 1 + index % 2]),
                    encoder={"input_ids": np.array(source)},
                    options=GenerationOptions(max_new_tokens=2 + index % 5),
                )
                for index, source in enumerate(sources)
            )
        )
        for index, source in enumerate(sources):
            assert tokens(found[index]) == [graphs.greedy([1, 2][: 1 + index % 2], 2 + index % 5, source)]
            assert found[index].prompt_tokens == len(source)

    def test_samples_and_beams_share_one_encoder_run(self, seq2seq: Engine) -> None:
        options = GenerationOptions(max_new_tokens=4, num_beams=3, num_return_sequences=2)
        asked = Request(prompt=np.array([1]), encoder={"input_ids": np.array([3, 4, 5])}, options=options)
        ((_, found),) = seq2seq.generate([asked])
        assert len(found.sequences) == 2

    def test_beams_that_change_places_move_no_encoder_output(self, seq2seq: Engine) -> None:
        assert seq2seq.encoder is not None
        cross = seq2seq.encoder.run([{"input_ids": np.array([3, 4])}, {"input_ids": np.array([5])}])
        cross.select(np.array([0, 0, 1, 1]))
        held = cross._content
        cross.select(np.array([1, 0, 3, 3]))
        assert cross._content is held
        cross.select(np.array([2, 3]))
        assert [array.shape[0] for array in cross._content] == [2] * len(held)
        assert cross._mask is not None and cross._mask.tolist() == [[1, 0], [1, 0]]

    def test_encoders_that_hear_their_padding_get_none(self) -> None:
        decoder = Decoder(open_session(graphs.decoder(cross=True)), {})
        encoder = Encoder(open_session(graphs.encoder(mask_out="encoder_attention_mask")), decoder.roles)
        rows = [{"input_ids": np.array(ids)} for ids in ([3, 4, 9], [5])]
        cross = encoder.run(rows)
        assert cross._mask is not None and cross._mask.tolist() == [[1, 1, 1], [1, 0, 0]]
        for together, *alone in zip(
            cross._content, *(encoder.run([row])._content for row in rows), strict=True
        ):
            for row, single in enumerate(alone):
                length = single.shape()[2]
                np.testing.assert_array_equal(together[row, :, :length], single.numpy()[0])
                assert not together[row, :, length:].any()
        prompts_ = [dataclasses.replace(request(1, max_new_tokens=4), encoder=row) for row in rows]
        found = dict(Engine(decoder, encoder, limit=graphs.CONTEXT, batch_size=2).generate(prompts_))
        assert [tokens(found[i]) for i in (0, 1)] == [
            [graphs.greedy([1], 4, source)] for source in ([3, 4, 9], [5])
        ]

    def test_waveforms_count_by_frames(self) -> None:
        sizes = {"limit": 8, "slot_bytes": 0, "encoder_slot_bytes": 1, "logits_bytes": 0}
        wave = {"input_values": np.zeros(16_000, np.float32), "attention_mask": np.ones(16_000, np.int64)}
        banks = {"input_features": np.zeros((300, 80), np.float32)}
        taken = [
            Budget(**sizes).row_bytes(dataclasses.replace(request(1), encoder=given), 1)
            for given in (wave, banks)
        ]
        assert taken == [100, 300]

    def test_scores(self, seq2seq: Engine) -> None:
        target, source = [1, 5, 6, 30, 2], [3, 4]
        found = seq2seq.score(np.array(target), encoder={"input_ids": np.array(source)})
        np.testing.assert_allclose(found, log_probabilities(target, source), atol=1e-4)

    def test_what_does_not_fit(self, seq2seq: Engine, decoder: Decoder) -> None:
        with pytest.raises(InputError, match="the request no inputs for it"):
            list(seq2seq.generate([request(1)]))
        with pytest.raises(InputError, match="takes 'input_ids', the request has input_features"):
            list(
                seq2seq.generate(
                    [
                        dataclasses.replace(
                            request(1), encoder={"input_features": np.zeros((2, 3), np.float32)}
                        )
                    ]
                )
            )
        with pytest.raises(InputError, match="has no encoder"):
            list(
                engine(decoder).generate(
                    [dataclasses.replace(request(1), encoder={"input_ids": np.array([1])})]
                )
            )
        with pytest.raises(UsageError, match="decoder-only"):
            seq2seq.conversation()


class Echo:
    """Guesses right with every second guess: the engine must take the right ones only."""

    def __init__(self, history: np.ndarray[Any, Any]) -> None:
        self.prompt = history.tolist()
        self.tokens: list[int] = []

    def push(self, token: int) -> None:
        self.tokens.append(token)

    def propose(self, count: int) -> list[int]:
        right = graphs.greedy([*self.prompt, *self.tokens], count)
        return [*right[:1], (right[1] + 1) % graphs.VOCABULARY, *right[2:]] if count > 1 else right


@pytest.mark.parametrize("proposer", [Echo, lambda history: NgramProposer(history.tolist())])
@pytest.mark.parametrize("sampled", [False, True])
def test_speculation_changes_nothing(decoder: Decoder, proposer: Any, sampled: bool) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "eos_token_ids": (10,)}
    if sampled:
        options |= {"do_sample": True, "seed": 3, "repetition_penalty": 1.3}
    asked = [request(*text, **options) for text in prompts(5, seed=8)]
    plain = dict(engine(decoder).generate(asked))
    guessed = dict(engine(decoder, proposer=proposer).generate(asked))
    assert {i: found.sequences for i, found in plain.items()} == {
        i: found.sequences for i, found in guessed.items()
    }
    stats = [found.stats for found in guessed.values()]
    assert all(each.accepted <= each.proposed for each in stats)
    if proposer is Echo and not sampled:
        assert sum(each.accepted for each in stats) > 0
        assert sum(each.steps for each in stats) < sum(found.stats.steps for found in plain.values())


def test_speculation_makes_one_sequence(decoder: Decoder) -> None:
    with pytest.raises(UsageError, match="one sequence"):
        list(engine(decoder, proposer=Echo).generate([request(1, num_beams=2)]))


class TestConversation:
    def test_a_turn_computes_its_new_tokens_only(self, decoder: Decoder) -> None:
        talk = engine(decoder).conversation()
        first = talk.generate(request(1, 2, 3, 4, max_new_tokens=5))
        assert tokens(first) == [graphs.greedy([1, 2, 3, 4], 5)]
        history = [1, 2, 3, 4, *first.sequences[0].tokens, 8, 9]
        second = talk.generate(request(*history, max_new_tokens=5))
        assert tokens(second) == [graphs.greedy(history, 5)]
        assert (second.stats.cached_tokens, second.stats.prefilled_tokens) == (8, 3)

    def test_another_history_keeps_the_common_beginning(self, decoder: Decoder) -> None:
        talk = engine(decoder).conversation()
        talk.generate(request(1, 2, 3, 4, max_new_tokens=5))
        found = talk.generate(request(1, 2, 7, max_new_tokens=5))
        assert tokens(found) == [graphs.greedy([1, 2, 7], 5)]
        assert found.stats.cached_tokens == 2
        again = talk.generate(request(1, 2, 7, max_new_tokens=5))
        assert tokens(again) == tokens(found) and again.stats.cached_tokens == 2
        talk.reset()
        assert talk.cached_tokens == talk.cached_bytes == 0

    @pytest.mark.parametrize("runs", [0, 1, 3])
    def test_an_interruption_leaves_it_usable(
        self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, runs: int
    ) -> None:
        talk = engine(decoder).conversation()
        talk.generate(request(1, 2, 3, max_new_tokens=4))
        left = iter([*[False] * runs, True])
        run = type(talk._row._batch._binding).run

        def interrupted(binding: Any) -> None:
            run(binding)
            if next(left, False):
                raise KeyboardInterrupt

        monkeypatch.setattr("onnxkit.runtime.binding.Binding.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            talk.generate(request(1, 2, 3, 5, 6, max_new_tokens=9))
        found = talk.generate(request(1, 2, 3, 5, max_new_tokens=9))
        assert tokens(found) == [graphs.greedy([1, 2, 3, 5], 9)]
        assert found.stats.cached_tokens >= 3


class Warned(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


class TestLimits:
    def test_the_context_ends_an_output(self, decoder: Decoder) -> None:
        progress = Warned()
        asked = [request(*[1] * 60, max_new_tokens=50)] * 2
        found = dict(engine(decoder, progress=progress).generate(asked))
        assert [len(found[index].sequences[0].tokens) for index in (0, 1)] == [4, 4]
        assert progress.texts == [
            "50 new tokens are asked for, the context of 64 tokens leaves 4 after the prompt: "
            "the output is cut there"
        ]

    def test_prompts_that_leave_no_room(self, decoder: Decoder) -> None:
        with pytest.raises(InputError, match="64 tokens and the model's context 64"):
            list(engine(decoder).generate([request(*[1] * 64)]))
        with pytest.raises(InputError, match="prompt is empty"):
            list(engine(decoder).generate([request()]))
        with pytest.raises(UsageError, match="int64"):
            list(engine(decoder).generate([Request(prompt=np.ones(3), options=GenerationOptions())]))
        with pytest.raises(UsageError, match="batch size"):
            engine(decoder, batch_size=0)

    def test_memory_is_checked_before_the_start(
        self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free(monkeypatch, 8000)
        with pytest.raises(ResourceError, match=r"2 \+ 60 tokens take .* are free: lower --max-new-tokens"):
            list(engine(decoder).generate([request(1, 2, max_new_tokens=60)]))
        with pytest.raises(ResourceError, match=r"for 4 sequences at once .* --num-beams"):
            list(engine(decoder).generate([request(1, 2, max_new_tokens=20, num_beams=4)]))
        with pytest.raises(ResourceError, match="60 tokens take"):
            engine(decoder).score(np.ones(60, np.int64))

    def test_less_memory_means_fewer_rows(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        free(monkeypatch, 12000)
        texts = prompts(6, longest=8)
        found = dict(engine(decoder).generate(request(*text, max_new_tokens=5) for text in texts))
        assert [tokens(found[index]) for index in range(6)] == [[graphs.greedy(text, 5)] for text in texts]

    def test_the_default_length_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        budget = Budget(limit=None, slot_bytes=100, encoder_slot_bytes=0, logits_bytes=10)
        assert budget.new_tokens(request(1, 2)) == 256
        assert dataclasses.replace(budget, limit=20).new_tokens(request(1, 2)) == 18
        free(monkeypatch, 2000)
        assert budget.new_tokens(request(1, 2)) == (1800 - 210) // 100


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(
        "onnxkit.generate.budget.memory", lambda: Memory(total_bytes=count, available_bytes=count)
    )


TWO_TABLES = {
    "encoder": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
    "decoder": {"model_type": "roberta", "max_position_embeddings": 32, "pad_token_id": 1},
}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),
        ({"model_type": "whisper", "max_target_positions": 448, "max_source_positions": 1500}, 448),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 8}}, 8),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "encoder-decoder", **TWO_TABLES}, 30),
        ({}, None),
    ],
)
def test_the_context_by_config(config: dict[str, Any], limit: int | None) -> None:
    assert context_limit(config) == limit


def test_an_encoder_reads_what_its_own_positions_reach() -> None:
    assert encoder_limit({"model_type": "encoder-decoder", **TWO_TABLES}) == 512
    assert encoder_limit({"model_type": "bart", "max_position_embeddings": 1024}) == 1024
    assert encoder_limit({"model_type": "t5", "n_positions": 512}) is None


def test_unknown_speculation() -> None:
    with pytest.raises(UsageError, match="ngram is the only kind"):
        Engine.open(cast(ModelDir, None), speculate="magic")
    with pytest.raises(UsageError, match="exclude each other"):
        Engine.open(cast(ModelDir, None), speculate="ngram", draft=cast(ModelDir, "a directory"))


def test_the_last_group_fills_a_hole() -> None:
    def move(count: int) -> Any:
        return Move(parents=np.arange(count), tokens=np.arange(count))

    moves: Any = [("a", move(0)), ("b", move(1)), ("c", move(0)), ("d", move(2)), ("e", move(1))]
    order: Any = [name for name, _ in _without_holes(moves)]
    assert order == ["e", "b", "d"]
