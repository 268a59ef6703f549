"""`onnxkit run` with models that generate: what it prints where, chats, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxkit.cli import interruption
from onnxkit.cli.app import execute
from onnxkit.cli.console import Console
from onnxkit.cli.generating import speculation
from onnxkit.generate import GenerationStats
from tests.generating_models import TEMPLATE, language_model, text_after, translator


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("chatty"), template=TEMPLATE)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("t5"))


class Ran:
    """What a command line did."""

    def __init__(self, *words: str | Path, terminal: bool = False) -> None:
        out, err = Terminal() if terminal else io.StringIO(), io.StringIO()
        self.code = execute(["run", *map(str, words)], Console(out=out, err=err))
        self.out, self.err = out.getvalue(), err.getvalue()

    @property
    def records(self) -> Any:
        return json.loads(self.out)["result"]

    def fails(self, code: int, *says: str) -> None:
        assert self.code == code, self.err
        for part in says:
            assert part in self.err, self.err


def test_one_prompt_prints_its_answer_alone(model: Path) -> None:
    ran = Ran(model, "hello")
    assert (ran.code, ran.out) == (0, text_after("hello", 8) + "\n")
    assert "max-new-tokens 8 (model)" in ran.err
    assert "6 prompt tokens, 8 new tokens in" in ran.err
    assert "tokens/s" in ran.err


def test_a_terminal_shows_the_answer_as_it_comes(model: Path) -> None:
    assert Ran(model, "hello", terminal=True).out == text_after("hello", 8) + "\n"
    assert Ran(model, "hello", "--stream").out == text_after("hello", 8) + "\n"
    assert Ran(model, "hello", "--no-stream", terminal=True).out == text_after("hello", 8) + "\n"


def test_records_keep_the_order_of_a_file(model: Path, tmp_path: Path) -> None:
    prompts = ["".join("abcdefgh"[(i * k) % 8] for k in range(1 + i % 5)) for i in range(40)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    ran = Ran(model, "--file", path, "--jsonl", "--batch-size", "4", "--max-new-tokens", "5")
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [record["index"] for record in records] == list(range(40))
    assert [record["text"] for record in records] == [text_after(prompt, 5) for prompt in prompts]
    assert "40 answers: " in ran.err


def test_several_prompts_make_a_table(model: Path) -> None:
    ran = Ran(model, "ab", "cd")
    assert ran.out.splitlines()[0].split() == ["input", "text", "new", "tokens", "end"]
    assert Ran(model, "ab", "cd", "--json").records[1]["prompt_tokens"] == 3


def test_several_sequences_are_numbered(model: Path) -> None:
    words = (model, "ab", "--num-return-sequences", "2", "--seed", "3")
    ran = Ran(*words)
    assert "1 of 2" in ran.out
    assert "2 of 2" in ran.out
    [record] = Ran(*words, "--json").records
    assert len(record["sequences"]) == 2
    assert Ran(model, "ab", "--num-beams", "3", "--json").records[0]["score"] < 0


@pytest.mark.parametrize(
    ("options", "draws"),
    [([], False), (["--num-beams", "2"], False), (["--temperature", "0"], False), (["--do-sample"], True),
     (["--temperature", "0.5"], True), (["--num-return-sequences", "2"], True)],
)  # fmt: skip
def test_a_seed_without_draws_is_warned_of(model: Path, options: list[str], draws: bool) -> None:
    ran = Ran(model, "w1", "--seed", "1", "--max-new-tokens", "2", "--json", *options)
    warnings = json.loads(ran.out)["warnings"]
    assert [text.partition(":")[0] for text in warnings] == ([] if draws else ["--seed has no effect"])
    assert "--seed" not in Ran(model, "w1", "--max-new-tokens", "2", *options).err


def test_stops_cut_the_text(model: Path) -> None:
    whole = text_after("hello", 8)
    stopped = Ran(model, "hello", "--stop", whole[3:5], "--json").records[0]
    assert stopped["text"] == whole[: whole.find(whole[3:5])]
    assert stopped["finish_reason"] == "stop"
    streamed = Ran(model, "hello", "--stop", whole[3:5], "--stream")
    assert streamed.out == stopped["text"] + "\n"
    token = whole[2]
    assert Ran(model, "hello", "--stop-token", token).out == whole[: whole.index(token)] + "\n"


def test_constrained_output(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    assert Ran(model, "hello", "--regex", "(yes|no)").out in ("yes\n", "no\n")
    (tmp_path / "s.json").write_text('{"type": "nothing"}')
    Ran(model, "hello", "--json-schema", tmp_path / "s.json").fails(2, "--json-schema")
    (tmp_path / "g.lark").write_text('start: "yes" | "no"')
    assert Ran(model, "hello", "--grammar", tmp_path / "g.lark").out in ("yes\n", "no\n")
    Ran(model, "hello", "--grammar", tmp_path / "none").fails(3, "none")


def test_output_that_is_cut_before_it_has_its_form_is_warned_of(model: Path) -> None:
    pytest.importorskip("llguidance")
    cut = Ran(model, "hello", "--regex", "abcdefgh", "--max-new-tokens", "3")
    assert "does not parse" in cut.err and cut.out == "abc\n"
    [warning] = json.loads(Ran(model, "a", "--regex", "[a-z]{9}", "--max-new-tokens", "3", "--json").out)[
        "warnings"
    ]
    assert "--max-new-tokens" in warning
    assert "does not parse" not in Ran(model, "hello", "--regex", "abc", "--max-new-tokens", "3").err
    assert "does not parse" not in Ran(model, "hello", "--max-new-tokens", "3").err


def test_speculation_says_what_it_won(model: Path) -> None:
    plain = Ran(model, "abababab", "--max-new-tokens", "30")
    for option in (["--speculate", "ngram"], ["--draft", str(model)]):
        ran = Ran(model, "abababab", "--max-new-tokens", "30", *option)
        assert ran.out == plain.out
    assert "guesses right" in ran.err
    stats = GenerationStats(
        first_token_s=1, seconds=2, new_tokens=9, prefilled_tokens=1, steps=4, proposed=6, accepted=4
    )
    assert speculation([stats]) == "; 4 of 6 guesses right, 2.00 tokens a step"


def test_scores(model: Path, t5: Path, tmp_path: Path) -> None:
    records = Ran(model, "hello", "the cat", "--score", "--json").records
    assert [record["scored_tokens"] for record in records] == [5, 7]
    assert all(record["perplexity"] > 1 for record in records)
    assert "perplexity of all 2" in Ran(model, "hello", "the cat", "--score").out
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "one", "target": "eins"}\n')
    assert json.loads(Ran(t5, "--file", path, "--score", "--jsonl").out)["scored_tokens"] == 5


def test_translation(t5: Path) -> None:
    prefixed = Ran(t5, "translate English to German: one", "--json").records[0]
    told = Ran(t5, "one", "--source-lang", "en", "--target-lang", "de", "--json").records[0]
    assert told["prompt_tokens"] == prefixed["prompt_tokens"]
    assert told["text"] == prefixed["text"]
    Ran(t5, "one", "--target-lang", "xx").fails(2, "--target-lang xx", "de")


def test_long_texts_are_cut_and_that_is_said_once(t5: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("a" * 100 + "\n" + "b" * 100 + "\nc\n")
    ran = Ran(t5, "--file", path, "--jsonl")
    assert ran.err.count("warning:") == 1
    assert "2 of 3 texts were longer than the 48 tokens that are read" in ran.err


# --- chats ----------------------------------------------------------------------------------


class Input(io.StringIO):
    """Standard input that is a pipe."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.buffer = io.BytesIO(text.encode())


def chat(monkeypatch: pytest.MonkeyPatch, model: Path, text: str, *words: str | Path) -> Ran:
    monkeypatch.setattr(sys, "stdin", Input(text))
    return Ran(model, "--chat", *words)


def test_a_chat_from_a_pipe(chatty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = f"hi\n\nyou\n/stats\n/save {saved}\n"
    ran = chat(monkeypatch, chatty, lines, "--max-new-tokens", "5")
    assert ran.code == 0, ran.err
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert ran.out == "".join(f"{message['content']}\n" for message in messages[1::2])
    assert "of them cached" in ran.err
    assert "2 answers, 10 new tokens" in ran.err
    again = Ran(chatty, "--messages", saved, "--json", "--max-new-tokens", "5")
    assert again.code == 0
    on = chat(monkeypatch, chatty, "more\n", "--messages", saved, "--jsonl", "--max-new-tokens", "5")
    assert json.loads(on.out)["prompt_tokens"] > 15


def test_every_turn_equals_the_whole_chat_at_once(chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = chat(monkeypatch, chatty, "hi\nyou\n", "--jsonl", "--max-new-tokens", "5")
    first, second = (json.loads(line) for line in ran.out.splitlines())
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "you"},
    ]
    path = chatty / "messages.json"
    path.write_text(json.dumps(messages))
    [whole] = Ran(chatty, "--messages", path, "--json", "--max-new-tokens", "5").records
    assert (whole["text"], whole["prompt_tokens"]) == (second["text"], second["prompt_tokens"])


def test_commands_of_a_chat(chatty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "hi\n/reset\n/system be brief\nhi\n/nope\n/system\n"
    ran = chat(monkeypatch, chatty, lines, "--max-new-tokens", "3", "--jsonl")
    tokens = [json.loads(line)["prompt_tokens"] for line in ran.out.splitlines()]
    assert tokens == [8, 8 + 1 + len("be brief")]  # <s> is one token
    assert "there is no command /nope" in ran.err
    assert "/save FILE" in ran.err
    ran.fails(2, "/system takes a text")
    ended = chat(monkeypatch, chatty, "/quit\nhi\n", "--json")
    assert ended.records == []
    (tmp_path / "there").touch()
    chat(monkeypatch, chatty, f"/save {tmp_path / 'there'}\n").fails(2, "exists")
    chat(monkeypatch, chatty, f"/save {tmp_path / 'none' / 'x'}\n").fails(2, "there is no directory")


def test_a_chat_that_fills_the_context(chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat(monkeypatch, chatty, "a" * 70 + "\n").fails(3, "76 tokens", "64")


def test_the_first_interruption_is_noted_and_the_second_raised() -> None:
    with interruption.noted() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    interruption.forget()


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "nothing to run"),
        (["a" * 80], 3, "81 tokens, and the model's context is 64"),
        (["hi", "--stop-token", "<end>"], 2, "no such token"),
        (["hi", "--stop", ""], 2, "--stop: the text is empty"),
        (["hi", "--temperature", "-1"], 2, "--temperature"),
        (["hi", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["hi", "--max-new-tokens", "5", "--max-length", "9"], 2, "--max-length"),
        (["hi", "--no-do-sample", "--temperature", "2"], 2, "--temperature does not apply"),
        (["hi", "--pooling", "mean"], 2, "--pooling does not apply: the task is text-generation"),
        (["hi", "--source-lang", "en"], 2, "--source-lang does not apply"),
        (["hi", "--timestamps"], 2, "--timestamps does not apply"),
        (["hi", "--score", "--temperature", "2"], 2, "--score generates nothing"),
        (["hi", "--stream", "--json"], 2, "--stream does not apply"),
        (["hi", "you", "--stream"], 2, "there is more than one prompt"),
        (["hi", "--speculate", "x"], 2, "unknown speculate"),
        (["hi", "--chat"], 2, "INPUT and --chat cannot be used together"),
        (["--chat", "--batch-size", "2"], 2, "--batch-size"),
        (["--chat"], 3, "no chat template"),
        (["hi", "--system", "be brief"], 3, "no chat template"),
        (["--pair", "a", "b"], 2, "--pair does not apply"),
    ],
)
def test_refusals(
    words: list[str], code: int, says: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Input("hi\n"))
    Ran(model, *words).fails(code, says)


def test_a_draft_with_another_tokenizer(model: Path, tmp_path: Path) -> None:
    draft = language_model(tmp_path)
    path = draft / "tokenizer.json"
    swapped = json.loads(path.read_text())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(swapped))
    Ran(model, "hi", "--draft", draft).fails(3, "another tokenizer", " there, ")


def test_messages_that_are_none(chatty: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text('["hi"]')
    Ran(chatty, "--messages", path).fails(3, "chat.json: a message has no role")
    path.write_text('[{"role": "user", "content": "hi"}]')
    assert Ran(chatty, "--messages", path).code == 0


IMPORTED = """
import sys
from onnxkit.cli.app import execute
from onnxkit.cli.console import Console
assert execute(sys.argv[1:], Console(out=sys.stderr)) == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_what_a_prompt_imports(model: Path) -> None:
    words = [sys.executable, "-c", IMPORTED, "run", str(model), "hi"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "onnx_ir", "onnxscript", "jinja2", "llguidance", "soundfile", "PIL"}
    assert not heavy & set(done.stdout.split())
