"""From the words of `onnxkit run` to samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.cli.options import reject
from onnxkit.errors import UsageError, suggestion

if TYPE_CHECKING:
    from onnxkit.tasks import Task

PATHS = ("image", "audio")
COUNTED = frozenset({".txt", ".jsonl", ".ndjson", ".csv", ".tsv"})


@dataclass(frozen=True, kw_only=True)
class Request:
    """Where the samples come from, as the command line says it; one of the ways."""

    inputs: tuple[str, ...] = ()
    pair: tuple[str, str] | None = None
    question: str | None = None
    context: str | None = None
    file: str | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tensors: Path | None = None
    messages: Path | None = None
    chat: bool = False

    @property
    def single(self) -> bool:
        """Whether there is one sample, and no file of any number of them."""
        return self.messages is not None or (len(self.inputs) == 1 and self.inputs != ("-",))

    def ways(self) -> tuple[str, ...]:
        """Return the names of the ways that were used."""
        used = {
            "INPUT": bool(self.inputs),
            "--pair": self.pair is not None,
            "--question": self.question is not None or self.context is not None,
            "--file": self.file is not None,
            "--inputs": self.tensors is not None,
            "--messages": self.messages is not None,
            "--chat": self.chat,
        }
        return tuple(name for name, present in used.items() if present)

    def check(self) -> None:
        """Refuse none, several or half a way, and options that belong to another (UsageError)."""
        ways = self.ways()
        if set(ways) == {"--messages", "--chat"}:  # the chat goes on from there
            return
        if not ways:
            raise UsageError(
                "nothing to run: give texts or paths, --pair, --question, --messages, --file or --inputs"
            )
        if len(ways) > 1:
            raise UsageError(f"{' and '.join(ways)} cannot be used together")
        if (self.question is None) != (self.context is None):
            raise UsageError("--question and --context belong together")
        if self.file == "":
            raise UsageError("--file: the path is empty")
        if "-" in self.inputs and len(self.inputs) > 1:
            raise UsageError("- (standard input) cannot be used together with other inputs")
        from_file = self.file is not None or self.inputs == ("-",)
        reject(bool(self.columns) and not from_file, "--column", "there is no --file")
        reject(self.format is not None and not from_file, "--format", "there is no --file")


def from_command_line(request: Request, task: Task) -> Iterator[Mapping[str, Any]]:
    """Return the samples of `request`, in the columns that `task` reads.

    Raises:
        UsageError: the task takes no samples of this form.
    """
    if request.pair is not None:
        _needs(task, "text", "--pair")
        return iter([{"text": request.pair[0], "text_pair": request.pair[1]}])
    if request.question is not None:
        _needs(task, "question", "--question")
        return iter([{"question": request.question, "context": request.context}])
    if request.messages is not None:
        return iter([_chat(request.messages)])
    file = "-" if request.inputs == ("-",) else request.file
    if file is not None:
        from onnxkit.inputs import read_samples

        return iter(read_samples(file, columns=request.columns, format=_format(request.format)))
    if len(task.columns) != 1:
        ways = " and ".join(f"--{name}" for name in task.columns)
        ways = "--pair" if task.columns == ("text", "text_pair") else ways or "--inputs FILE.npz"
        raise UsageError(f"{task.name} takes {ways}, or --file; not a bare INPUT")
    column = task.columns[0]
    if column not in PATHS:
        return iter([{column: text} for text in request.inputs])
    if "" in request.inputs:
        raise UsageError(f"INPUT: the path of an {column} is empty")
    folder = next((text for text in request.inputs if Path(text).is_dir()), None)
    if folder is not None:
        raise UsageError(f"{folder} is a directory: --file {folder} runs all that is in it")
    from onnxkit.inputs import Located

    return iter([Located({column: Path(text)}, text) for text in request.inputs])


def _chat(path: Path) -> Mapping[str, Any]:
    from onnxkit.inputs import Located
    from onnxkit.safety import read_json_value

    return Located({"messages": read_json_value(path)}, str(path))


def _format(name: str | None) -> Any:
    """Check the name of a format (UsageError with the nearest names)."""
    from onnxkit.inputs import FORMATS

    if name is not None and name not in FORMATS:
        raise UsageError(f"unknown format {name!r}; {suggestion(name, FORMATS)}")
    return name


def _needs(task: Task, column: str, option: str) -> None:
    if column not in task.columns:
        raise UsageError(f"{option} does not apply: {task.name} takes {', '.join(task.columns)}")


def count(request: Request) -> int | None:
    """Return how many samples there will be, None where that would need reading everything twice."""
    if request.file is None:
        return None if request.inputs == ("-",) else max(1, len(request.inputs))
    path = Path(request.file)
    if path.suffix.lower() not in COUNTED or not path.is_file():
        return None
    with contextlib.suppress(OSError), path.open("rb") as stream:  # who reads it says why it cannot be
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) or None
    return None
