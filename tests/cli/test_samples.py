from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxkit.cli.samples import Request, count, from_command_line
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Located


def task(*columns: str) -> Any:
    return SimpleNamespace(name="some-task", columns=columns)


@pytest.mark.parametrize(
    ("request_", "columns", "samples"),
    [
        (Request(inputs=("a", "b")), ("text",), [{"text": "a"}, {"text": "b"}]),
        (Request(inputs=("x.png",)), ("image",), [Located({"image": Path("x.png")}, "x.png")]),
        (Request(pair=("a", "b")), ("text",), [{"text": "a", "text_pair": "b"}]),
        (
            Request(question="q", context="c"),
            ("question", "context"),
            [{"question": "q", "context": "c"}],
        ),
    ],
)
def test_each_way_fills_the_columns_of_the_task(
    request_: Request, columns: tuple[str, ...], samples: list[Any]
) -> None:
    request_.check()
    assert list(from_command_line(request_, task(*columns))) == samples


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(inputs=("a",), file="f"),
        Request(file=""),
        Request(question="q"),
        Request(context="c"),
        Request(inputs=("-", "a")),
        Request(inputs=("a",), columns={"text": "t"}),
        Request(inputs=("a",), format="csv"),
        Request(pair=("a", "b"), tensors=Path("x.npz")),
    ],
)
def test_none_several_or_half_a_way_is_refused(request_: Request) -> None:
    with pytest.raises(UsageError):
        request_.check()


@pytest.mark.parametrize(
    ("request_", "columns"),
    [
        (Request(inputs=("a",)), ("question", "context")),
        (Request(pair=("a", "b")), ("image",)),
        (Request(question="q", context="c"), ("text",)),
        (Request(file="x.txt", format="cvs"), ("text",)),
        (Request(inputs=("a.png", "")), ("image",)),
    ],
)
def test_a_way_that_is_not_the_tasks_is_refused(request_: Request, columns: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        list(from_command_line(request_, task(*columns)))


def test_a_folder_is_for_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{tmp_path} is a directory: --file {tmp_path} runs"):
        from_command_line(Request(inputs=("x.png", str(tmp_path))), task("image"))


def test_files_are_read_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\ntwo\n")
    request_ = Request(file=str(file))
    assert [dict(one) for one in from_command_line(request_, task("text"))] == [
        {"text": "one"},
        {"text": "two"},
    ]
    assert count(request_) == 2
    assert count(Request(inputs=("a", "b", "c"))) == 3
    assert count(Request(inputs=("-",))) is None
    assert count(Request(file="-")) is None


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        list(from_command_line(Request(file=str(tmp_path / "missing.txt")), task("text")))


def test_raw_tensors_have_an_option_of_their_own() -> None:
    with pytest.raises(UsageError, match=r"takes --inputs FILE\.npz, or --file; not a bare INPUT"):
        from_command_line(Request(inputs=("a",)), task())
