"""`onnxkit run --chat`: a conversation with a model, line by line.

On a terminal lines are edited and remembered, and Ctrl-C stops an answer and not the chat. From a
pipe every line is a turn. Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxkit.cli import figures, generating, interruption
from onnxkit.cli.console import Console
from onnxkit.cli.options import reject
from onnxkit.errors import InputError, OnnxkitError, UsageError, suggestion

if TYPE_CHECKING:
    from onnxkit.generate.dialogue import Dialogue, Turn
    from onnxkit.predictor import Predictor

_PROMPT = "> "
_MAX_LINE_BYTES = 1 << 20


def run(ctx: typer.Context, predictor: Predictor, *, jsonl: bool) -> None:
    """Talk until the user ends it (Ctrl-D, /quit) or the lines of standard input do.

    Raises:
        InputError: the model has no chat template; in a pipe, a turn that cannot be answered.
    """
    from onnxkit.generate.dialogue import Dialogue
    from onnxkit.safety import read_json_value
    from onnxkit.tasks.chat_template import checked_messages

    console: Console = ctx.obj
    assert predictor.generator is not None
    options = predictor.generator.options
    several = options.num_return_sequences > 1 or options.num_beams > 1
    reject(several, "--num-beams, --num-return-sequences", "a chat has one answer")
    path: Path | None = ctx.params["messages"]
    before = checked_messages(read_json_value(path), str(path)) if path is not None else []
    dialogue = Dialogue(predictor.generator, before, system=ctx.params["system"])
    generating.announce(ctx, options)
    Session(console, dialogue, jsonl=jsonl).run()


class Session:
    """A chat at a console."""

    def __init__(self, console: Console, dialogue: Dialogue, *, jsonl: bool) -> None:
        self._console = console
        self._dialogue = dialogue
        self._jsonl = jsonl
        self._records: list[Mapping[str, Any]] = []
        self._turns: list[Turn] = []
        self._interactive = sys.stdin.isatty()
        self._over = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "/help"),
            "/reset": (self._reset, "/reset: forget what was said"),
            "/system": (self._system, "/system TEXT: instruct the model"),
            "/stats": (self._stats, "/stats: what it took"),
            "/save": (self._save, "/save FILE: the chat as JSON, for --messages"),
            "/quit": (self._quit, "/quit or Ctrl-D: end"),
        }

    def run(self) -> None:
        """Take lines until they end."""
        for line in self._lines():
            text = line.strip()
            if text.startswith("/"):
                self._tolerant(self._command, text)
            elif text:
                self._tolerant(self._turn, text)
            if self._over:
                break
        if self._console.json:
            self._console.document("run", self._records)

    def _tolerant(self, act: Callable[[str], None], text: str) -> None:
        """Do what a line asks for; on a terminal a failure is said, and the chat goes on."""
        try:
            act(text)
        except OnnxkitError as error:
            if not self._interactive:
                raise
            self._console.error(str(error))
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            interruption.forget()
            self._console.piece("\n")
            self._console.note("stopped")

    def _turn(self, text: str) -> None:
        shown = not (self._jsonl or self._console.json)
        with interruption.noted() if self._interactive else interruption.raised() as interrupted:
            turn = self._dialogue.ask(
                text, on_text=self._console.piece if shown else None, interrupted=interrupted
            )
        interruption.forget()
        self._turns.append(turn)
        record = {
            "index": len(self._turns) - 1, "text": turn.text, "finish_reason": turn.finish_reason,
            "new_tokens": turn.new_tokens, "prompt_tokens": turn.prompt_tokens,
        }  # fmt: skip
        if shown:
            self._console.piece("\n")
        elif self._jsonl:
            self._console.record(record)
        else:
            self._records.append(record)
        self._console.note(f"({_took(turn)})")

    def _command(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        word = {"/exit": "/quit", "/bye": "/quit", "/?": "/help"}.get(word, word)
        if word not in self._commands:
            self._console.note(f"there is no command {word}; {suggestion(word, self._commands)}")
            word = "/help"
        self._commands[word][0](rest.strip())

    def _help(self, _: str) -> None:
        for _act, help_text in self._commands.values():
            self._console.note(help_text)
        self._console.note("Ctrl-C: stop an answer")

    def _reset(self, _: str) -> None:
        self._dialogue.reset()
        self._console.note("forgotten")

    def _system(self, text: str) -> None:
        if not text:
            raise UsageError("/system takes a text")
        self._dialogue.instruct(text)
        self._console.note("instructed")

    def _stats(self, _: str) -> None:
        new = sum(turn.new_tokens for turn in self._turns)
        cache = (
            f"{self._dialogue.cached_tokens:,} tokens cached ({figures.size(self._dialogue.cached_bytes)})"
        )
        self._console.note(f"{figures.plural(len(self._turns), 'answer')}, {new:,} new tokens, {cache}")
        if self._turns:
            self._console.note(f"the last one: {_took(self._turns[-1])}")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save takes the name of a file")
        from onnxkit.artifact import publish_file

        path = Path(name)
        if path.exists():
            raise UsageError(f"{path} exists; give another name")
        with publish_file(path, overwrite=False) as staging:
            staging.write_text(json.dumps(self._dialogue.messages, ensure_ascii=False, indent=1), "utf-8")
        self._console.note(f"wrote {path}")

    def _quit(self, _: str) -> None:
        self._over = True

    def _lines(self) -> Iterator[str]:
        return self._typed() if self._interactive else _piped()

    def _typed(self) -> Iterator[str]:
        """Yield lines from the terminal, which remembers them while the chat lasts."""
        import readline  # noqa: F401 - gives input() its editing and history

        self._console.note("a chat: /help says what it takes, Ctrl-D ends it")
        while True:
            try:
                yield input(_PROMPT)
            except EOFError:
                self._console.note("")
                return
            except KeyboardInterrupt:
                interruption.forget()
                self._console.note("")


def _took(turn: Turn) -> str:
    return "stopped" if turn.stats is None else generating.answer_line(turn.stats, turn.prompt_tokens)


def _piped() -> Iterator[str]:
    """Yield the lines of standard input."""
    number = 0
    while line := sys.stdin.buffer.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise InputError(f"standard input:{number}: the line is longer than {_MAX_LINE_BYTES >> 20} MB")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input:{number}: byte {error.start + 1} is not UTF-8") from error
