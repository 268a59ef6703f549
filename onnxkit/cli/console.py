"""The one output sink: stdout is data, stderr is talk. The only user of Rich.

Three modes: human (tables and short lines), `--json` (one document on stdout), `--quiet` (no
talk but warnings and errors). Foreign text (file names, labels, samples) passes through
`safety.printable` and is never parsed as markup.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Literal, TypeVar

from onnxkit import __version__
from onnxkit.cli import interruption
from onnxkit.progress import Progress
from onnxkit.report import SCHEMA, to_plain

T = TypeVar("T")
Justify = Literal["left", "right"]
WIDE = 60  # characters of a wide column where no terminal gives the width


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table. `number` is aligned right, `wide` gives way when space is short."""

    title: str
    number: bool = False
    wide: bool = False


def _until_interrupted(items: Iterable[T]) -> Iterator[T]:
    """Yield `items`; stop where the user asked to stop, should the signal's own exception have got lost."""
    for item in items:
        interruption.check()
        yield item
    interruption.check()


class Console(Progress):
    """Where everything that a user sees goes through."""

    def __init__(
        self, out: IO[str] | None = None, err: IO[str] | None = None, *, owns_process: bool = False
    ) -> None:
        self.owns_process = owns_process
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr
        self.json = False
        self.quiet = False
        self.debug = False
        self.warnings: list[str] = []

    # --- talk: stderr ---

    def note(self, text: str) -> None:
        """Say a fact about the work, unless the user wants quiet."""
        interruption.check()
        if not self.quiet:
            self._say(text)

    def warn(self, text: str) -> None:
        """Say what the user should know, once; also in the JSON document."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._say(f"warning: {text}", colour="33")

    def error(self, text: str) -> None:
        """Say why the command failed, in one line."""
        self._say(f"error: {text}", colour="31")

    def _say(self, text: str, colour: str = "") -> None:
        line = clean(text)
        if colour and self.colours(self.err):
            word, _, rest = line.partition(":")
            line = f"\x1b[1;{colour}m{word}:\x1b[0m{rest}"
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more
            print(line, file=self.err, flush=True)

    @staticmethod
    def colours(stream: IO[str]) -> bool:
        """Whether `stream` is a terminal whose user wants colours (NO_COLOR)."""
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def track(self, items: Iterable[T], *, total: int | None, text: str) -> Iterator[T]:
        """Yield `items` under a progress bar, where stderr is a terminal."""
        items = _until_interrupted(items)
        if self.quiet or not self.err.isatty():
            yield from items
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Bar(*columns, TimeRemainingColumn(), console=self._rich(self.err), transient=True) as bar:
            yield from bar.track(items, total=total, description=clean(text))

    # --- data: stdout ---

    def line(self, text: str = "") -> None:
        """Print one line of data for people."""
        print(clean(text), file=self.out)

    def prose(self, text: str, end: str = "\n") -> None:
        """Print text that a model wrote, with its lines; a terminal gets no control characters of it."""
        self.piece(text + end)

    def piece(self, text: str) -> None:
        """Print a piece of such a text at once, without a line end."""
        if self.out.isatty():
            text = "\n".join("\t".join(map(clean, line.split("\t"))) for line in text.split("\n"))
        self.out.write(text)
        self.out.flush()

    def heading(self, text: str) -> None:
        """Print a title above facts or a table."""
        line = clean(text)
        self.out.write(f"\n\x1b[1m{line}\x1b[0m\n" if self.colours(self.out) else f"\n{line}\n")

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print names and values in two columns; on a terminal a long value is wrapped in its own."""
        rows = [(name, value) for name, value in pairs if value]
        indent = max((len(name) for name, _ in rows), default=0) + 2
        room = shutil.get_terminal_size().columns - indent
        for name, value in rows:
            wraps = self.out.isatty() and room > WIDE // 2
            lines = textwrap.wrap(clean(value), room, break_on_hyphens=False) if wraps else [clean(value)]
            for number, line in enumerate(lines):
                print(f"{'' if number else name:<{indent}}{line}", file=self.out)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print rows in columns, at the width of the terminal; a pipe gets full width."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            justify: Justify = "right" if column.number else "left"
            table.add_column(Text(column.title), justify=justify, no_wrap=not column.wide, overflow="fold")
        cells = [[clean(cell) for cell in row] for row in rows]
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        rich = self._rich(self.out, _natural_width(columns, cells))
        self.out.flush()  # or Rich meets a closed pipe first, and ends the process with 1
        with rich.capture() as capture:
            rich.print(table)
        self.out.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())

    def records(self, columns: Sequence[Column], rows: Iterable[Sequence[str]], chunk: int = 200) -> None:
        """Print a table of unknown length in constant memory, `chunk` rows at a time."""
        block: list[Sequence[str]] = []
        for row in rows:
            block.append(row)
            if len(block) == chunk:
                self.table(columns, block)
                self.out.flush()
                block = []
        if block:
            self.table(columns, block)

    def _rich(self, stream: IO[str], width: int | None = None) -> Any:
        """Return Rich's console on `stream`; `width` is for a stream that is no terminal."""
        from rich.console import Console as RichConsole

        width = None if stream.isatty() else width
        return RichConsole(
            file=stream, width=width, markup=False, highlight=False, emoji=False,
            force_terminal=None if stream.isatty() else False,
            color_system="auto" if self.colours(stream) else None,
        )  # fmt: skip

    # --- JSON: stdout ---

    def document(self, command: str, result: Any) -> None:
        """Print the one document of `--json`."""
        self._dump(
            {
                "schema": SCHEMA,
                "command": command,
                "version": __version__,
                "result": to_plain(result),
                "warnings": self.warnings,
            }
        )

    def failure(self, code: int, kind: str, message: str, report: Any) -> None:
        """Print the document of a failure; a failed gate's report stands beside it."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "error": {"code": code, "kind": kind, "message": message},
        }
        if report is not None:
            document["result"] = to_plain(report)
        self._dump(document)

    def record(self, record: Any) -> None:
        """Print one line of `--jsonl` and hand it to the reader at once."""
        self.out.write(json.dumps(to_plain(record), separators=(", ", ": ")) + "\n")
        self.out.flush()

    def _dump(self, document: dict[str, Any]) -> None:
        # ASCII: no control or bidi character of a foreign name reaches the terminal.
        self.out.write(json.dumps(document, indent=2 if self.out.isatty() else None) + "\n")

    def result(
        self, command: str, report: Any, show: Callable[[Console, Any], None], *, data: bool = False
    ) -> None:
        """Print a stage's report in the user's mode.

        `data` marks commands whose report is what the user asked for (profile, inspect, …):
        `--quiet` silences the others.
        """
        if self.json:
            self.document(command, report)
        elif data or not self.quiet:
            show(self, report)

    def begin(self) -> None:
        """Keep the process's stdout for data alone: what else writes to it lands on stderr.

        That holds for C++ libraries, too. Called once the command line is parsed and before any
        library is imported. Where there is no stderr to send the rest to, stdout stays shared.
        """
        if not self.owns_process:
            return
        with contextlib.suppress(OSError):
            data = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
            os.dup2(2, 1)
            self.out = data

    def flush(self) -> None:
        """Flush stdout here, so that a full disk or a closed pipe is met inside the boundary."""
        self.out.flush()

    def abandon_stdout(self) -> None:
        """Send what is still buffered nowhere: the reader is gone."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.out.fileno())
            os.close(null)


def _natural_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """Return the width that a table needs so that only its wide columns are wrapped."""
    from rich.cells import cell_len

    total = 0
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True) if rows else ():
        needed = max(cell_len(column.title), *map(cell_len, cells))
        total += (min(needed, WIDE) if column.wide else needed) + 2
    return max(total, 20)


def clean(text: str) -> str:
    """Escape control and bidi characters of `text`; tabs and line ends become spaces."""
    if text.isascii() and text.isprintable():
        return text  # nothing to escape: spares the import
    from onnxkit.safety import printable

    return printable(text)
