"""The model's own chat template: messages to the text that it was trained on.

A template is foreign code. It runs in Jinja's immutable sandbox, sees plain values only, and within
limits: so many steps of loops and calls, so many characters. What it sees is what transformers'
`apply_chat_template` shows it (utils/chat_template_utils.py), so the same text comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.errors import InputError
from onnxkit.safety import printable, read_json, read_text
from onnxkit.tasks.text import well_formed

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.tasks.jinja_sandbox import Bounded
    from onnxkit.tasks.tokenizer import TokenizerSetup

Message = Mapping[str, Any]

MAX_TEMPLATE_BYTES = 1 << 20

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; the first is what templates read."""
_CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A compiled template.

    Attributes:
        compiled: what renders.
        variables: the special tokens by role, and other named tokens.
        where: the file that it was read from, for errors.
    """

    compiled: Bounded
    variables: Mapping[str, str]
    where: str

    @classmethod
    def load(cls, model: ModelDir, setup: TokenizerSetup) -> ChatTemplate:
        """Read the template of a model directory.

        Raises:
            InputError: there is none, or it is no template.
        """
        from onnxkit.tasks.jinja_sandbox import compile_template

        folder = model.path
        settings = _optional(folder / "tokenizer_config.json")
        where, source = _source(folder, settings)
        compiled = compile_template(source, where=where)
        return cls(compiled=compiled, variables=_variables(settings, setup), where=where)

    def render(self, messages: Sequence[Message], *, where: str, answer: bool = True) -> str:
        """Return the text of a chat; with `answer` the assistant's turn begins at its end.

        A chat whose last message is the assistant's is left open at its end: the model continues it.

        Raises:
            InputError: the template refuses the messages, or exceeds its limits.
        """
        chat = [_prepared(message) for message in messages]
        continued = answer and chat[-1].get("role") == "assistant"
        final = chat[-1].get("content") if continued else None
        if isinstance(final, str):
            chat[-1] = {**chat[-1], "content": final + _CONTINUED}
        text = self.compiled.render(
            {
                **self.variables,
                "messages": chat,
                "tools": None,
                "documents": None,
                "add_generation_prompt": answer and not continued,
            },
            where=where,
        )
        whole = _cut_at_tag(text, where) if isinstance(final, str) else text
        return well_formed(whole, f"{where}: what the chat template makes")


def checked_messages(value: Any, where: str) -> list[Message]:
    """Return a `messages` column's chat: objects with a `role` and, for the most part, a `content`.

    Raises:
        InputError: anything else.
    """
    example = '[{"role": "user", "content": "Hello"}]'
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{where}: messages must be a list such as {example}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"{where}: a message has no role; a chat looks like {example}")
        if not isinstance(message.get("content", ""), str | list | None):
            raise InputError(f"{where}: the content of a message must be a text; a chat looks like {example}")
    return list(value)


def _prepared(message: Message) -> dict[str, Any]:
    """Drop what is null, and let a message's reasoning stand under every name that templates read."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    if reasoning is None:
        return kept
    return {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _cut_at_tag(text: str, where: str) -> str:
    """Cut the text off where the last message's own text ended."""
    tag = _CONTINUED.strip()
    place = text.rfind(tag)
    if place < 0:
        raise InputError(f"{where}: the chat template leaves the last message out; end with the user's")
    if text[place : place + len(_CONTINUED)] == _CONTINUED:
        return text[:place]
    return text[:place].rstrip()  # the template trims messages


def _source(folder: Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return the file and the text of the default template: a file of its own before the tokenizer's."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return str(path), read_text(path, "chat template", max_bytes=MAX_TEMPLATE_BYTES)
    for name, owner in (("tokenizer_config.json", settings), ("chat_template.json", None)):
        value = (owner if owner is not None else _optional(folder / name)).get("chat_template")
        if value:
            return str(folder / name), _default(value, folder / name)
    raise InputError(
        f"{folder}: the model has no chat template (chat_template.jinja, or chat_template in "
        "tokenizer_config.json); put its own there, or give a plain prompt"
    )


def _default(value: Any, path: Path) -> str:
    """Return the template, or of several named ones the one called "default"."""
    if isinstance(value, str):
        return value
    named: dict[str, Any] = {}
    if isinstance(value, Mapping):
        named = dict(value)
    elif isinstance(value, list):
        entries = [one for one in value if isinstance(one, Mapping)]
        named = {str(one.get("name")): one.get("template") for one in entries}
    if isinstance(named.get("default"), str):
        return str(named["default"])
    names = ", ".join(map(str, named)) or "none"
    raise InputError(f"{path}: chat_template names no default template (there are: {printable(names)})")


def _variables(settings: Mapping[str, Any], setup: TokenizerSetup) -> dict[str, str]:
    """Return the special tokens by role, further named tokens of tokenizer_config.json included."""
    extra = settings.get("extra_special_tokens")
    named = {
        key: value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str)
    }
    if isinstance(extra, Mapping):
        named.update((str(key), value) for key, value in extra.items() if isinstance(value, str))
    return {**named, **setup.specials}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
