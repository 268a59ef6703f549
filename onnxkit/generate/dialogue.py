"""A chat turn by turn: messages through the model's template, over a cache that keeps what was said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from onnxkit.generate.pipeline import Generator, OnText
from onnxkit.generate.request import GenerationStats
from onnxkit.tasks.detokenizer import TextStream
from onnxkit.tasks.text_generation import TextGeneration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One answer.

    Attributes:
        text: what the assistant said.
        finish_reason: "stop" or "length"; "interrupted" where the user stopped it.
        prompt_tokens: the whole chat before the answer.
        new_tokens: of the answer.
        stats: what it took, `cached_tokens` of the chat were not computed again; None where Ctrl-C broke
            off the run of a graph.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    new_tokens: int
    stats: GenerationStats | None


class Dialogue:
    """A chat with a model. Its messages are what the template is given; the cache follows them.

    Attributes:
        messages: {"role", "content"} of everything that was said, the instruction first where there is one.
    """

    def __init__(
        self, generator: Generator, messages: Sequence[Any] = (), *, system: str | None = None
    ) -> None:
        """Begin with what was said before.

        Raises:
            InputError: the model has no chat template.
            UsageError: it does not continue texts.
        """
        assert isinstance(generator.task, TextGeneration)
        self._task = generator.task
        self._generator = generator
        self._conversation = generator.engine.conversation()
        _ = self._task.template
        self.messages = [dict(message) for message in messages]
        self._known: tuple[str, list[int]] | None = None  # the chat's text and ids up to the last answer
        if system is not None:
            self.instruct(system)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return self._conversation.cached_tokens

    @property
    def cached_bytes(self) -> int:
        """Bytes of these keys and values."""
        return self._conversation.cached_bytes

    def ask(
        self, text: str, *, on_text: OnText | None = None, interrupted: Callable[[], bool] | None = None
    ) -> Turn:
        """Say `text`, and return the answer; both are messages from then on.

        Args:
            text: what the user says.
            on_text: is given the answer as it comes.
            interrupted: asked at every token; the answer ends where it says yes. With it, Ctrl-C ends
                the answer, too, and what was said is kept.

        Raises:
            KeyboardInterrupt: Ctrl-C before anything was said; `text` is not kept.
            InputError: the chat fills the model's context, or the template refuses it; `text` is not kept.
        """
        chat = [*self.messages, {"role": "user", "content": text}]
        row = self._task.chat_row(chat, where="the chat", known=self._known)
        watch = _Watch(self._task.stream(row), on_text, interrupted)
        request = self._generator.request(row, stop=lambda: watch)
        try:
            completion = self._conversation.generate(request)
        except KeyboardInterrupt:
            if interrupted is None or not watch.said:
                raise
            return self._kept(chat, watch, "interrupted", len(request.prompt), None)
        [sequence] = completion.sequences
        said = self._task.text_of(sequence.tokens)
        self._known = (row.extra.sample + said, [*row.extra.ids.tolist(), *sequence.tokens])
        reason = "interrupted" if watch.interrupted else sequence.finish_reason
        return self._kept(chat, watch, reason, completion.prompt_tokens, completion.stats)

    def instruct(self, system: str) -> None:
        """Put an instruction before the chat, in the place of the one that is there."""
        rest = self.messages[1:] if self._instructed() else self.messages
        self.messages = [{"role": "system", "content": system}, *rest]

    def reset(self) -> None:
        """Forget what was said; the instruction stays."""
        self.messages = self.messages[:1] if self._instructed() else []
        self._conversation.reset()

    def _kept(
        self, chat: list[Any], watch: _Watch, reason: str, tokens: int, stats: GenerationStats | None
    ) -> Turn:
        answer = watch.end()
        self.messages = [*chat, {"role": "assistant", "content": answer}]
        new = watch.tokens if stats is None else stats.new_tokens
        return Turn(text=answer, finish_reason=reason, prompt_tokens=tokens, new_tokens=new, stats=stats)

    def _instructed(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"


class _Watch:
    """Shows an answer as it comes, and ends it at a stop string or when the user wants it.

    Attributes:
        said: the pieces so far.
        tokens: how many they were made of.
        interrupted: whether the user ended it.
    """

    def __init__(
        self, stream: TextStream, on_text: OnText | None, interrupted: Callable[[], bool] | None
    ) -> None:
        self._stream = stream
        self._say = on_text
        self._asked = interrupted
        self.said: list[str] = []
        self.tokens = 0
        self.interrupted = False

    def push(self, token: int) -> bool:
        """Take the engine's next token; return whether the answer ends with it."""
        self.tokens += 1
        self._take(self._stream.text(token))
        self.interrupted = self._asked is not None and self._asked()
        return self.interrupted or self._stream.stopped

    def end(self) -> str:
        """Return the whole answer."""
        self._take(self._stream.flush())
        return "".join(self.said)

    def _take(self, text: str) -> None:
        if text:
            self.said.append(text)
            if self._say is not None:
                self._say(text)
