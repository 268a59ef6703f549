from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from onnxkit.cli.console import Column, Console, clean
from onnxkit.report import Report


@dataclass(frozen=True, kw_only=True)
class Sample(Report):
    size_bytes: int
    ratio: float


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(**modes: bool) -> Console:
    made = Console(out=io.StringIO(), err=io.StringIO())
    for name, value in modes.items():
        setattr(made, name, value)
    return made


def written(made: Console) -> tuple[str, str]:
    assert isinstance(made.out, io.StringIO) and isinstance(made.err, io.StringIO)
    return made.out.getvalue(), made.err.getvalue()


def work(made: Console) -> None:
    made.note("2 threads")
    made.warn("noisy")
    made.warn("noisy")
    made.result("export", Sample(size_bytes=3, ratio=0.5), lambda to, report: to.line(f"{report.size_bytes}"))


@pytest.mark.parametrize(
    ("modes", "out", "err"),
    [
        ({}, "3\n", "2 threads\nwarning: noisy\n"),
        ({"quiet": True}, "", "warning: noisy\n"),
        ({"json": True, "quiet": True}, None, "warning: noisy\n"),
        ({"json": True}, None, "2 threads\nwarning: noisy\n"),
    ],
)
def test_every_mode_puts_data_and_talk_where_they_belong(
    modes: dict[str, bool], out: str | None, err: str
) -> None:
    made = console(**modes)
    work(made)
    stdout, stderr = written(made)
    assert stderr == err
    if out is not None:
        assert stdout == out
        return
    assert json.loads(stdout) == {
        "schema": "onnxkit/1", "command": "export", "version": "0.1.0",
        "result": {"size_bytes": 3, "ratio": 0.5}, "warnings": ["noisy"],
    }  # fmt: skip


def test_quiet_still_prints_data_that_was_asked_for() -> None:
    made = console(quiet=True)
    made.result("inspect", Sample(size_bytes=3, ratio=0.5), lambda to, report: to.line("data"), data=True)
    assert written(made)[0] == "data\n"


def test_json_holds_no_nan_and_is_ascii() -> None:
    made = console(json=True)
    made.document("run", [{"label": "\u202eevil", "score": float("nan")}])
    stdout = written(made)[0]
    assert stdout.isascii()
    assert json.loads(stdout)["result"] == [{"label": "\u202eevil", "score": None}]


@pytest.mark.parametrize("name", ["[/]", "[link=http://x]y[/link]", "[bold]b[/bold]", ":smile:", "a[0]"])
def test_markup_in_foreign_text_is_printed_as_it_is(name: str) -> None:
    made = console()
    made.table([Column("name")], [[name]])
    made.facts([("name", name)])
    made.warn(name)
    stdout, stderr = written(made)
    assert stdout.count(name) == 2
    assert name in stderr


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\u202eb", "two\nlines", "tab\there", "\x9b0m"])
def test_control_and_bidi_characters_do_not_reach_the_terminal(name: str) -> None:
    made = console()
    made.table([Column("name")], [[name]])
    made.error(name)
    made.heading(name)
    for text in written(made):
        assert not any(char in text for char in ("\x1b", "\u202e", "\t", "\x9b"))
    assert written(made)[1].count("\n") == 1


def test_a_table_in_a_pipe_is_whole_and_has_no_trailing_blanks() -> None:
    made = console()
    long = "x" * 300
    made.table(
        [Column("name"), Column("n", number=True), Column("why", wide=True)], [[long, "1", "ab " * 99]]
    )
    stdout = written(made)[0]
    assert long in stdout
    assert all(line == line.rstrip() for line in stdout.splitlines())
    assert stdout.count("ab") == 99


def test_a_table_of_nothing_prints_its_heading() -> None:
    made = console()
    made.table([Column("name")], [])
    assert written(made)[0] == "name\n"


def test_records_are_printed_in_blocks() -> None:
    made = console()
    made.records([Column("n", number=True)], ([str(n)] for n in range(5)), chunk=2)
    assert written(made)[0].split() == ["n", "0", "1", "n", "2", "3", "n", "4"]


def test_colours_on_a_terminal_only_and_not_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Console(out=Terminal(), err=Terminal())
    made.warn("noisy")
    assert "\x1b[" in written(made)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Console(out=Terminal(), err=Terminal())
    plain.warn("noisy")
    plain.table([Column("name")], [["x"]])
    assert written(plain) == ("name\nx\n", "warning: noisy\n")


def test_progress_shows_on_a_terminal_and_yields_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    silent, drawn = console(), Console(out=io.StringIO(), err=Terminal())
    for made in (silent, drawn):
        assert list(made.track(range(3), total=3, text="exporting")) == [0, 1, 2]
    assert written(silent) == ("", "")
    assert "exporting" in written(drawn)[1]


def test_a_long_fact_is_wrapped_in_its_column_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    made = Console(out=Terminal(), err=Terminal())
    made.facts([("missing", " ".join(["libcudnn.so.9"] * 9)), ("empty", "")])
    lines = written(made)[0].splitlines()
    assert len(lines) > 1 and all(len(line) <= 60 for line in lines)
    assert all(line.startswith(" " * 9) for line in lines[1:])


def test_a_reader_that_left_does_not_disturb_the_talk() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Console(out=io.StringIO(), err=Closed()).note("x")


@pytest.mark.parametrize("text", ["plain", "Grüße", "语言"])
def test_clean_keeps_what_is_printable(text: str) -> None:
    assert clean(text) == text


def test_lists_of_dataclasses_are_documents_too() -> None:
    made = console(json=True)
    rows: list[Any] = [Sample(size_bytes=1, ratio=1.0)]
    made.document("run", rows)
    assert json.loads(written(made)[0])["result"] == [{"size_bytes": 1, "ratio": 1.0}]
