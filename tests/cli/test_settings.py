"""The argv of the history repeats the run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from typer.main import get_command

from onnxkit.cli.app import app
from onnxkit.cli.console import Console
from onnxkit.cli.settings import invocation, repeating_argv


def parse(words: list[str]) -> Any:
    """Parse a command line without running its command; return the command's context."""
    group: Any = get_command(app)
    console = Console(out=io.StringIO(), err=io.StringIO())
    parent = group.make_context("onnxkit", [], obj=console)
    return group.commands[words[0]].make_context(words[0], words[1:], parent=parent)


COMMAND_LINES = [
    ["quantize", "in", "out"],
    ["quantize", "in", "out", "--scheme", "int8-static", "--calibration", "c.jsonl", "--samples", "8"],
    ["quantize", "in", "out", "--exclude", "a.b", "--exclude", "c d", "--per-tensor", "--no-measure"],
    ["export", "-m", "bert", "out", "--no-verify", "--dtype", "fp16"],
    ["export", "bert", "out", "--trust-remote-code"],
    ["optimize", "in", "out", "-O3", "--disable-fusion", "gelu"],
    ["run", "dir", "--pair", "a b", "-c", "--top-k", "2"],
    ["run", "dir", "--", "-5", "--json"],
]


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_the_repeated_command_line_gives_the_same_values(words: list[str]) -> None:
    ctx = parse(words)
    again = parse(list(repeating_argv(ctx)[1:]))
    assert again.params == ctx.params
    assert repeating_argv(again) == repeating_argv(ctx)


def test_environment_is_spelled_out_and_its_source_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXKIT_SCHEME", "int8-static")
    monkeypatch.setenv("ONNXKIT_EXCLUDE", "one two")
    made = invocation(parse(["quantize", "in", "out", "--seed", "3"]))
    assert made.stage == "quantize"
    assert made.argv == (
        "onnxkit", "quantize", "--scheme", "int8-static", "--seed", "3", "--exclude", "one", "--exclude",
        "two", "in", "out",
    )  # fmt: skip
    assert made.options["scheme"] == "int8-static"
    assert made.sources["scheme"] == "environment"
    assert made.sources["seed"] == "command line"
    assert made.sources["samples"] == "default"


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXKIT_SEED", "9")
    made = invocation(parse(["quantize", "in", "out", "--seed", "3"]))
    assert (made.options["seed"], made.sources["seed"]) == (3, "command line")


def test_secrets_and_presentation_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXKIT_TOKEN", "hf_secret")
    made = invocation(parse(["export", "bert", "out", "--json", "--quiet", "--debug"]))
    assert made.argv == ("onnxkit", "export", "bert", "out")
    assert "hf_secret" not in repr(made)
    assert not {"token", "json", "quiet", "debug"} & set(made.options)
