"""Text generation: a prompt or a chat, and what a decoder-only model says after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.artifact.configuration import input_positions, position_offset
from onnxkit.errors import InputError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Array, Encoded, Feeds, Metric, Record
from onnxkit.tasks.chat_template import ChatTemplate, Message, checked_messages
from onnxkit.tasks.generating import GeneratingTask, Prompt, ids_array
from onnxkit.tasks.perplexity import perplexity
from onnxkit.tasks.text import pad, text_column

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

_CONTEXT = 8
"""Tokens before the new ones that their text is decoded after: enough for a character or a word."""


class TextGeneration(GeneratingTask):
    """Records: `text` (what is new), `finish_reason`, `new_tokens`, `prompt_tokens`, `score`.

    A sample is a `prompt` (or `text`), which is continued, or `messages` of a chat, which the model's own
    chat template makes a prompt of. With `system`, a bare prompt is what the user says in a chat that
    begins with that instruction. `score` is the log-probability of the new tokens.
    """

    name = "text-generation"
    columns = ("prompt",)
    encodes = False
    needs_labels = False

    def __init__(
        self,
        model: ModelDir,
        *,
        stop: Sequence[str] = (),
        stop_token: Sequence[str] = (),
        system: str | None = None,
    ) -> None:
        super().__init__(model, stop=stop, stop_token=stop_token)
        self.limit = input_positions(model.config)
        self._system = system

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template.

        Raises:
            InputError: it has none.
        """
        return ChatTemplate.load(self.model, self.setup)

    def encode(self, sample: Sample) -> Encoded:
        """Turn a sample into the ids to continue.

        Raises:
            InputError: no prompt, an empty one that the model cannot begin with, one that fills the
                model's context, messages that the chat template refuses.
        """
        messages = self._messages(sample)
        if messages is not None:
            return self.chat_row(messages, where=place(sample))
        ids = self.prompt_ids(self._prompt(sample), where=place(sample))
        return self._row(Prompt(ids=ids_array(ids), context=tuple(ids[-_CONTEXT:])), place(sample))

    def chat_row(
        self, messages: Sequence[Message], *, where: str, known: tuple[str, Sequence[int]] | None = None
    ) -> Encoded:
        """Turn a chat into the ids to continue: the assistant speaks next, until the end of its turn.

        Args:
            messages: the chat.
            where: its name, for errors.
            known: a text and the ids that the model itself made of it. A chat that begins with that text,
                and goes on with a special token, keeps these ids; its cache then stays of use.

        Raises:
            InputError: the model has no chat template, or it refuses the messages; no room for an answer.
        """
        text = self.template.render(messages, where=where)
        end = self.setup.token_id("eos_token")
        ids = ids_array(self._chat_ids(text, where, known))
        prompt = Prompt(ids=ids, stop_ids=() if end is None else (end,), sample=text)
        return self._row(prompt, where)

    def score_row(self, sample: Sample) -> Encoded:
        """Turn a sample into the ids whose probability is asked for, cut at the model's context.

        Raises:
            InputError: no text, or one of a single token.
        """
        messages = self._messages(sample)
        if messages is not None:
            text = self.template.render(messages, where=place(sample), answer=False)
            ids = self._chat_ids(text, place(sample))
        else:
            ids = self.prompt_ids(self._prompt(sample), where=place(sample))
        if len(ids) < 2:
            raise InputError(f"{place(sample)}: {len(ids)} token has no probability after another; give more")
        kept = ids[: self.limit]
        return Encoded(
            features={}, length=len(kept), extra=Prompt(ids=ids_array(kept)), truncated=len(kept) < len(ids),
            where=place(sample),
        )  # fmt: skip

    def prompt_ids(self, text: str, *, where: str = "the prompt") -> list[int]:
        """Return a text's ids as transformers' tokenizer makes them; of none, the token of beginning."""
        ids: list[int] = self.setup.tokenizer.encode(text).ids
        if ids:
            return ids
        first = self.setup.token_id("bos_token")
        if first is None:
            raise InputError(f"{where}: the prompt is empty, and the model has no token to begin with")
        return [first]

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Return what computes the prompts: padded at the left, nothing cached before them."""
        width = max(row.length for row in rows)
        ones = [np.ones(row.length, dtype=np.int64) for row in rows]
        mask = pad(ones, width, 0, "left", "int64")
        made: dict[str, Array] = {
            "input_ids": pad([row.extra.ids for row in rows], width, self.setup.pad_id, "left", "int64"),
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(-1) - 1, 0) + position_offset(self.model.config),
        }
        for name, spec in self.inputs.items():
            if name.startswith("past_key_values."):
                heads, size = spec.shape[1], spec.shape[3]
                made[name] = np.zeros((len(rows), int(heads or 1), 0, int(size or 1)), dtype=spec.dtype)
        return {name: made[name] for name in self.inputs if name in made}

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Exact match of `target`s; of scored texts the perplexity."""
        if records and "log_probability" in records[0]:
            return perplexity(records)
        return super().metric(records, samples)

    def sample_of(self, item: Any) -> Sample:
        """Take a prompt, or a list of messages."""
        if isinstance(item, Mapping):
            return item
        return {"messages": item} if isinstance(item, list) else {"prompt": item}

    def _messages(self, sample: Sample) -> list[Message] | None:
        if sample.get("messages") is not None:
            given = checked_messages(sample["messages"], place(sample))
            if self._system is None or given[0]["role"] == "system":
                return given
            return [{"role": "system", "content": self._system}, *given]
        if self._system is None:
            return None
        user = {"role": "user", "content": self._prompt(sample)}
        return [{"role": "system", "content": self._system}, user]

    def _prompt(self, sample: Sample) -> str:
        return text_column(sample, "text" if "prompt" not in sample and "text" in sample else "prompt")

    def _chat_ids(self, text: str, where: str, known: tuple[str, Sequence[int]] | None = None) -> list[int]:
        encode = self.setup.tokenizer.encode
        if known is not None and text.startswith(known[0]):
            rest = text[len(known[0]) :]
            if rest.startswith(self._special_texts):
                return [*known[1], *encode(rest, add_special_tokens=False).ids]
        ids: list[int] = encode(text, add_special_tokens=False).ids
        if not ids:
            raise InputError(f"{where}: the chat template makes no text of the messages")
        return ids

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = self.setup.tokenizer.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    def _row(self, prompt: Prompt, where: str) -> Encoded:
        length = len(prompt.ids)
        if self.limit is not None and length >= self.limit:
            raise InputError(
                f"{where}: the prompt has {length:,} tokens, and the model's context is {self.limit:,}: "
                "nothing can follow; shorten it"
            )
        return Encoded(features={}, length=length, extra=prompt, where=where)
