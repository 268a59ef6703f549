"""From samples to answers: order, rows that follow others, failures, options, and the predictor on top."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onnxkit import Predictor
from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.generate.dialogue import Dialogue
from onnxkit.generate.pipeline import Generator
from onnxkit.inputs import read_samples
from onnxkit.measure.evaluate import evaluate
from onnxkit.progress import Progress
from onnxkit.tasks.base import Encoded, Record
from onnxkit.tasks.text_generation import TextGeneration
from tests.generating_models import TEMPLATE, language_model, letters, text_after, translator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"), template=TEMPLATE)


def generator(folder: Path, kind: type[TextGeneration] = TextGeneration, **options: Any) -> Generator:
    model = ModelDir.open(folder)
    return Generator(model, kind(model), **options)


def texts(made: Generator, samples: Any, **more: Any) -> list[str]:
    return [answer.record["text"] for answer in made.answers(samples, **more)]


def test_answers_come_in_order_whatever_finishes_first(folder: Path) -> None:
    prompts = ["a" * (1 + i * 7 % 11) for i in range(30)]
    expected = [text_after(prompt, 8) for prompt in prompts]
    for batch_size in (1, 3, 8):
        assert texts(generator(folder, batch_size=batch_size), prompts) == expected


class Twice(TextGeneration):
    """Continues every answer once more, as speech goes from window to window."""

    def next_row(self, row: Encoded, record: Record) -> Encoded | None:
        if row.extra.sample == "second":
            return None
        again = self.encode({"prompt": record["text"]})
        prompt = type(again.extra)(ids=again.extra.ids, context=again.extra.context, sample="second")
        return Encoded(features={}, length=again.length, extra=prompt, where=row.where)

    def merge(self, records: Sequence[Record]) -> Record:
        return {"text": " / ".join(record["text"] for record in records)}


def test_rows_that_follow_others_join_their_sample(folder: Path) -> None:
    made = generator(folder, Twice, batch_size=2, max_new_tokens=4)
    prompts = ["a", "bc", "def", "g", "hij"]
    found = list(made.answers(prompts))
    assert [len(answer.stats) for answer in found] == [2] * 5
    first = [text_after(prompt, 4) for prompt in prompts]
    assert [answer.record["text"] for answer in found] == [
        f"{text} / {text_after(text, 4)}" for text in first
    ]


def test_samples_are_read_as_places_get_free(folder: Path) -> None:
    read = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield "ab"

    stream = generator(folder, batch_size=2).answers(endless())
    assert [next(stream).record["new_tokens"] for _ in range(4)] == [8] * 4
    assert len(read) <= 16


def test_what_fails_is_said_after_the_answers_before_it(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": 3}\n{"prompt": "c"}\n')
    stream = generator(folder).answers(read_samples(path))
    assert [next(stream).record["text"] for _ in range(2)] == [text_after("a", 8), text_after("b", 8)]
    with pytest.raises(InputError, match=r"a\.jsonl:3: 'prompt' must be a text"):
        next(stream)


def test_a_prompt_that_fills_the_context_is_said_after_the_answers_before_it(folder: Path) -> None:
    made = generator(folder, max_new_tokens=2, batch_size=4)
    answers = made.answers(["ab", "cd", "a" * 64, "ef"])
    assert [next(answers).record["text"] for _ in range(2)] == texts(made, ["ab", "cd"])
    with pytest.raises(InputError, match=r"^sample 2: the prompt has"):
        next(answers)


def test_text_as_it_comes_is_the_record_s(folder: Path) -> None:
    said: list[str] = []
    assert texts(generator(folder), ["hello"], on_text=said.append) == ["".join(said)]
    assert len(said) > 1


def test_options_of_model_task_and_caller(folder: Path) -> None:
    made = generator(folder, top_k=5)
    assert (made.options.max_new_tokens, made.options.do_sample, made.options.top_k) == (8, True, 5)
    with pytest.raises(UsageError, match="no option 'max_tokens'; did you mean max_new_tokens"):
        generator(folder, max_tokens=3)
    stopping = generator(language_model(folder.parent / "stops", stop_strings=["q"]))
    assert stopping.task.stops.texts == ("q",)
    assert "q" not in "".join(texts(stopping, ["abc", "hello"]))


def test_a_predictor_generates(folder: Path) -> None:
    predictor = Predictor(folder, max_new_tokens=5, stop=["zzz"])
    [record] = predictor("hello")
    assert list(record) == ["index", "text", "finish_reason", "new_tokens", "prompt_tokens"]
    assert record["text"] == text_after("hello", 5)
    assert pickle.loads(pickle.dumps(predictor))("hello") == [record]
    assert Predictor(folder, draft=folder, max_new_tokens=5)("hello")[0]["text"] == record["text"]
    chat = Predictor(folder, max_new_tokens=5)([[{"role": "user", "content": "hi"}]])
    assert chat[0]["prompt_tokens"] == 8


def test_options_of_neither_are_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no option 'pooling'"):
        Predictor(folder, pooling="mean")


def test_a_text_model_is_judged_by_perplexity_or_exact_match(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(folder, max_new_tokens=3)
    scored = evaluate(predictor, [{"text": "hello"}, {"text": "the cat"}])
    assert scored is not None
    assert (scored.name, scored.count, scored.higher_is_better) == ("perplexity", 2, False)
    right = text_after("hello", 3)
    matched = evaluate(predictor, [{"prompt": "hello", "target": right}, {"prompt": "a", "target": "?"}])
    assert matched is not None
    assert (matched.name, matched.value) == ("exact_match", 0.5)
    other = evaluate(Predictor(translator(tmp_path)), [{"text": "ab", "target": "x"}])
    assert other is not None
    assert other.name == "exact_match"


class Listening(Progress):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_scored_texts_are_cut_at_the_context_and_that_is_said(folder: Path) -> None:
    progress = Listening()
    [record] = Predictor(folder, progress=progress).score(["a" * 100])
    assert record["scored_tokens"] == 63
    assert len(progress.warned) == 1


def test_a_dialogue_ends_where_the_user_wants(folder: Path) -> None:
    dialogue = Dialogue(generator(folder, max_new_tokens=8))
    count = iter(range(100))
    turn = dialogue.ask("hi", interrupted=lambda: next(count) >= 2)
    assert (turn.finish_reason, turn.stats.new_tokens) == ("interrupted", 3)
    assert dialogue.messages[-1] == {"role": "assistant", "content": turn.text}
    after = dialogue.ask("on")
    assert after.stats.cached_tokens > 5
    assert letters().encode(turn.text).ids[0] == 1


def test_a_turn_computes_only_what_is_new(tmp_path: Path) -> None:
    said = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    template = said + "{% if add_generation_prompt %}<a>{% endif %}"
    folder = language_model(tmp_path, template=template)
    dialogue = Dialogue(generator(folder, max_new_tokens=5))
    first = dialogue.ask("hi")
    assert first.stats is not None
    second = dialogue.ask("you")
    assert second.stats is not None
    known = first.prompt_tokens + first.stats.new_tokens
    assert second.stats.cached_tokens >= known - 1
    assert second.prompt_tokens == known + 1 + len("<u>you") + 1 + len("<a>")  # </s> is one token


def test_what_was_said_before_ctrl_c_is_kept(folder: Path) -> None:
    dialogue = Dialogue(generator(folder, max_new_tokens=8))

    def say(_: str) -> None:
        if len(said := ["x", *spoken]) > 3:
            raise KeyboardInterrupt
        spoken.append(said[0])

    spoken: list[str] = []
    turn = dialogue.ask("hi", on_text=say, interrupted=lambda: False)
    assert (turn.finish_reason, turn.stats, turn.new_tokens) == ("interrupted", None, 4)
    assert turn.text == Dialogue(generator(folder, max_new_tokens=8)).ask("hi").text[: len(turn.text)] != ""
    assert dialogue.messages[-1]["content"] == turn.text
    assert dialogue.ask("on").stats is not None
    with pytest.raises(KeyboardInterrupt):
        dialogue.ask("more", on_text=say)
    assert dialogue.messages[-2]["content"] == "on"


def test_a_dialogue_keeps_nothing_of_what_cannot_be_asked(folder: Path) -> None:
    dialogue = Dialogue(generator(folder), system="be brief")
    with pytest.raises(InputError, match="context is 64"):
        dialogue.ask("a" * 80)
    assert dialogue.messages == [{"role": "system", "content": "be brief"}]
