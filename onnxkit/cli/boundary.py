"""The one place where exceptions become an exit code and one line on stderr."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer

from onnxkit.cli import interruption
from onnxkit.cli.console import Console
from onnxkit.cli.interruption import Terminated
from onnxkit.errors import OnnxkitError

_EXTRAS = {
    "torch": "export",
    "transformers": "export",
    "optimum": "export",
    "safetensors": "export",
    "huggingface_hub": "export",
    "pyarrow": "data",
    "gguf": "gguf",
    "peft": "adapter",
}
_OUTPUT_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EMFILE,
    errno.ENOMEM, errno.EIO,
}  # fmt: skip
_INPUT_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the user learns about an exception."""

    code: int
    kind: str
    message: str
    report: Any = None


def guarded(work: Callable[[], None], console: Console) -> int:
    """Run `work`; return the documented exit code, having told the user what went wrong."""
    interruption.forget()
    try:
        work()
        console.flush()
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:  # Typer's completion ends so
        return int(stop.code or 0)
    except BaseException as error:
        if console.owns_process:
            interruption.at_once()
        if _closed_pipe(error):
            console.abandon_stdout()
            return 0
        failure = diagnose(error)
        _tell(failure, error, console)
        return failure.code


def _closed_pipe(error: BaseException) -> bool:
    """Whether the reader of our output went away, as `| head` does."""
    return isinstance(error, BrokenPipeError)


def _tell(failure: Failure, error: BaseException, console: Console) -> None:
    if console.debug:
        traceback.print_exception(error)
    try:
        if console.json:
            console.failure(failure.code, failure.kind, failure.message, failure.report)
        console.flush()
    except OSError:  # stdout itself is what is broken; the line on stderr says so
        console.abandon_stdout()
    console.error(failure.message)


def diagnose(error: BaseException) -> Failure:
    """Map any exception to an exit code, a kind and one line."""
    if isinstance(error, OnnxkitError):
        return Failure(
            code=error.code, kind=error.kind, message=str(error), report=getattr(error, "report", None)
        )
    if isinstance(error, KeyboardInterrupt):
        return Failure(code=130, kind="signal", message="interrupted")
    if isinstance(error, Terminated):
        return Failure(code=143, kind="signal", message="terminated")
    if isinstance(error, typer.TyperException):
        return Failure(code=2, kind="usage", message=usage_message(error))
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if isinstance(error, MemoryError):
        text = "out of memory; use a smaller batch or a machine with more memory"
        return Failure(code=5, kind="resource", message=text)
    if isinstance(error, OSError):
        return _system_error(error)
    return _bug(error)


def _bug(error: BaseException) -> Failure:
    text = " ".join(str(error).split()) or "no message"
    message = f"internal error: {type(error).__name__}: {text} (run again with --debug)"
    return Failure(code=1, kind="bug", message=message)


def _missing_package(error: ModuleNotFoundError) -> Failure:
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return _bug(error)
    return Failure(
        code=4,
        kind="environment",
        message=f"the package {package} is not installed; pip install 'onnxkit[{_EXTRAS[package]}]'",
    )


def _system_error(error: OSError) -> Failure:
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror or error}"
    if error.errno in _OUTPUT_ERRNOS:
        return Failure(code=5, kind="resource", message=message)
    if error.errno in _INPUT_ERRNOS and error.filename:
        return Failure(code=3, kind="input", message=message)
    return _bug(error)


def usage_message(error: typer.TyperException) -> str:
    """Put what the parser has to say into one line, with the nearest names and where to look."""
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        near = sorted(error.possibilities or ())
        text = f"no such option {option}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    else:
        text = " ".join(error.format_message().split()).rstrip(".")
        text = re.sub(r"^([A-Z])(?=[a-z])", lambda match: match[1].lower(), text)
    ctx = getattr(error, "ctx", None)
    return text if ctx is None else f"{text} (see {ctx.command_path} --help)"
