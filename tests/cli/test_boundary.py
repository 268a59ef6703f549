from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
from collections.abc import Callable

import pytest
import typer

from onnxkit import errors
from onnxkit.cli import interruption
from onnxkit.cli.boundary import diagnose, guarded
from onnxkit.cli.console import Column, Console
from onnxkit.cli.interruption import Terminated


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


CASES = [
    (errors.UsageError("u"), 2, "usage", "u"),
    (errors.InputError("i"), 3, "input", "i"),
    (errors.EnvironmentProblem("e"), 4, "environment", "e"),
    (errors.ResourceError("r"), 5, "resource", "r"),
    (errors.UnsafeError("x"), 6, "unsafe", "x"),
    (errors.GateFailed("g"), 7, "gate", "g"),
    (typer.BadParameter("Not a number."), 2, "usage", "invalid value: Not a number"),
    (missing("torch"), 4, "environment", "the package torch is not installed; pip install 'onnxkit[export]'"),
    (missing("transformers.models"), 4, "environment", "onnxkit[export]"),
    (missing("pyarrow"), 4, "environment", "onnxkit[data]"),
    (missing("nosuch"), 1, "bug", "internal error: ModuleNotFoundError"),
    (MemoryError(), 5, "resource", "out of memory"),
    (
        OSError(errno.ENOSPC, "No space left on device", "out/model.onnx"),
        5,
        "resource",
        "out/model.onnx: No space",
    ),
    (OSError(errno.EROFS, "Read-only file system", "out"), 5, "resource", "out: Read-only"),
    (PermissionError(errno.EACCES, "Permission denied", "out"), 5, "resource", "out: Permission denied"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "in"), 3, "input", "in: No such file"),
    (KeyboardInterrupt(), 130, "signal", "interrupted"),
    (Terminated(), 143, "signal", "terminated"),
    (ValueError("two\nlines"), 1, "bug", "internal error: ValueError: two lines (run again with --debug)"),
    (RuntimeError(), 1, "bug", "internal error: RuntimeError: no message (run again with --debug)"),
]


@pytest.mark.parametrize(("error", "code", "kind", "message"), CASES)
def test_every_exception_has_a_code_a_kind_and_a_line(
    error: BaseException, code: int, kind: str, message: str
) -> None:
    failure = diagnose(error)
    assert (failure.code, failure.kind) == (code, kind)
    assert message in failure.message
    assert "\n" not in failure.message


def run(work: Callable[[], None], **modes: bool) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out=out, err=err)
    for name, value in modes.items():
        setattr(console, name, value)
    return guarded(work, console), out.getvalue(), err.getvalue()


def raiser(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_an_error_is_one_line_on_stderr() -> None:
    assert run(raiser(errors.InputError("bad.onnx:\n truncated"))) == (3, "", "error: bad.onnx: truncated\n")


def test_under_json_the_document_says_it_too() -> None:
    code, out, err = run(raiser(errors.InputError("bad")), json=True)
    assert (code, err) == (3, "error: bad\n")
    assert json.loads(out) == {
        "schema": "onnxkit/1",
        "error": {"code": 3, "kind": "input", "message": "bad"},
    }


def test_a_failed_gate_brings_its_report() -> None:
    _, out, _ = run(raiser(errors.GateFailed("off", {"worst": 0.5})), json=True)
    assert json.loads(out)["result"] == {"worst": 0.5}


def test_tracebacks_with_debug_only(capsys: pytest.CaptureFixture[str]) -> None:
    run(raiser(ValueError("v")))
    assert "Traceback" not in capsys.readouterr().err
    run(raiser(ValueError("v")), debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_success_and_silent() -> None:
    assert run(raiser(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == (0, "", "")


def test_a_pipe_that_is_closed_before_a_table_is_success_and_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    err = io.StringIO()
    console = Console(out=os.fdopen(writing, "w"), err=err)

    def show() -> None:
        console.facts([("size", "1")])
        console.table([Column("name")], [("value",)])

    assert (guarded(show, console), err.getvalue()) == (0, "")


def test_a_full_disk_behind_stdout_is_met_inside_the_boundary() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    err = io.StringIO()
    for json_mode in (False, True):
        console = Console(out=Full(), err=err)
        console.json = json_mode
        assert guarded(lambda: None, console) == 5
    assert err.getvalue() == "error: No space left on device\n" * 2


def test_exits_of_the_parser_pass_through() -> None:
    assert run(raiser(typer.Exit(0)))[0] == 0
    assert run(raiser(SystemExit(0)))[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_that_a_library_swallowed_is_raised_again(number: signal.Signals, code: int) -> None:
    console, before = Console(io.StringIO(), io.StringIO()), [signal.getsignal(n) for n in (2, 15)]

    def work() -> None:
        with contextlib.suppress(BaseException):  # as a callback from C does
            signal.raise_signal(number)
        list(console.track([1], total=1, text="on it goes"))
        pytest.fail("nobody stopped")

    signal.signal(signal.SIGINT, signal.default_int_handler)
    interruption.install()
    try:
        assert guarded(work, console) == code
        interruption.forget()
        assert guarded(lambda: console.note("fine"), console) == 0
    finally:
        for each, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(each, handler)
