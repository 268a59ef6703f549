"""Output that must follow a JSON schema, a regular expression or a grammar (llguidance, an extra)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxkit.errors import EnvironmentProblem, InputError, ResourceError, UsageError
from onnxkit.generate.closing import Letters, way_out

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# A small model may write spaces for ever where any number of them is allowed.
_WHITESPACE = r"[ \n\t]{0,16}"
_LONGEST_MESSAGE = 200
_LEAST_SLACK, _FAIR_SLACK = 8, 64
_GROWTH = 4
"""Tokens by which one more token lengthens the way at most, on average: what opens has a name first."""
_LOST = 64
"""Tokens before the end from where on a way that was not found is looked for at every step."""
_LONGEST_WAY = 4096


class Constraint(Protocol):
    """Says which token may come next in one sequence."""

    @property
    def finished(self) -> bool:
        """Whether the sequence is complete and nothing more may come."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the sequence, cut here, is what was asked for."""
        ...

    def mask(self, left: int | None = None) -> NDArray[np.bool_]:
        """Return which tokens may come next, bool [vocabulary]; end-of-sequence ones where `complete`.

        `left` is how many may still come, this one counted (None: no matter). Where they run out, only tokens
        are allowed that lead to a complete sequence, if such a way is known.
        """
        ...

    def accept(self, token: int) -> None:
        """Go on by a token that `mask` allows."""
        ...

    def fork(self) -> Constraint:
        """Return an independent copy: another beam, or a guess that may be taken back."""
        ...


def grammar_constraint(
    tokenizer_json: str | bytes,
    eos: Iterable[int],
    *,
    vocabulary: int,
    json_schema: str | None = None,
    regex: str | None = None,
    grammar: str | None = None,
) -> Callable[[], Constraint]:
    """Return what makes a constraint for each sequence.

    Takes the text of tokenizer.json and of exactly one of: a JSON schema, a regular expression (Rust's
    dialect: `[0-9]` is plain digits, `\\d` those of any script) that the whole output matches, a Lark grammar
    (llguidance's dialect) with the rule `start`. `eos` are the end-of-sequence tokens, `vocabulary` the
    number of tokens of the logits. The grammar is compiled once (up to a second with a large vocabulary).

    Near the end of its budget of tokens a sequence is led to an end, so that it parses. No way to an end is
    always found, or it is longer than the whole budget: then the sequence is cut before it is
    `complete`, which its finish reason "length" says.

    Raises:
        UsageError: none or several of the three; the schema, expression or grammar is impossible.
        InputError: llguidance cannot use this tokenizer.
        EnvironmentProblem: llguidance is not installed.
    """
    given = {"--json-schema": json_schema, "--regex": regex, "--grammar": grammar}
    asked = [(name, text) for name, text in given.items() if text is not None]
    if len(asked) != 1:
        raise UsageError("give one of --json-schema, --regex and --grammar")
    ((name, text),) = asked
    content = json.loads(tokenizer_json)
    spaced = (content.get("decoder") or {}).get("type") == "Metaspace"
    if spaced:
        content.update(_spelled_out(content["decoder"].get("replacement", "▁")))
    ends = [token for token in eos if token < vocabulary]
    tokenizer = _tokenizer(content, ends, vocabulary)
    first = _llguidance().LLMatcher(tokenizer, _written(name, text, spaced), log_level=0)
    if first.is_error():
        raise UsageError(f"{name} is not possible: {_short(first.get_error())}")
    letters = Letters.of(tokenizer)
    shortest = len(way_out(first, letters, _LONGEST_WAY) or ())
    slack = max(_LEAST_SLACK, shortest)
    setting = _Setting(eos=ends, vocabulary=vocabulary, letters=letters, slack=slack)
    return lambda: _Grammar(first.deep_copy(), setting)


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What all sequences under one grammar share.

    Attributes:
        eos: the end-of-sequence tokens.
        vocabulary: how many tokens there are.
        letters: tokens for the way to the end.
        slack: tokens that are kept free beside that way: one choice may make it longer, by an item of a list,
            say, of about the length of the shortest whole output. Of a small budget no more than a third.
    """

    eos: list[int]
    vocabulary: int
    letters: Letters
    slack: int


class _Grammar:
    """A constraint by llguidance's matcher."""

    def __init__(self, matcher: LLMatcher, setting: _Setting) -> None:
        self._matcher = matcher
        self._setting = setting
        self._way: list[int] | None = None  # to the end from here, where it is known
        self._look: int | None = None  # the tokens left at which it is looked at next; None: at once
        self._budget = 0  # the most tokens that were ever left

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    def mask(self, left: int | None = None) -> NDArray[np.bool_]:
        setting = self._setting
        if left is not None and (self._look is None or left <= self._look):
            only = self._hurried(left)
            if only:
                allowed = np.zeros(setting.vocabulary, np.bool_)
                allowed[only] = True
                return allowed
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=setting.vocabulary, bitorder="little").view(np.bool_)
        # An end-of-sequence token may be ordinary text, too (a newline, say): it only ever ends.
        allowed[setting.eos] = self.complete
        return allowed

    def accept(self, token: int) -> None:
        self._way = self._way[1:] if self._way and self._way[0] == token else None
        self._matcher.consume_token(token)
        self._check()

    def fork(self) -> _Grammar:
        other = _Grammar(self._matcher.deep_copy(), self._setting)
        other._way, other._look, other._budget = self._way, self._look, self._budget
        return other

    def _hurried(self, left: int) -> list[int]:
        """Return the tokens that keep to the way to the end; empty where there is time, or no way."""
        self._budget = max(self._budget, left)
        if self._way is None:
            self._way = way_out(self._matcher, self._setting.letters, left)
        if self._way is None:
            self._look = left - 1 - max(0, left - _LOST) // 4
            return []
        spare = left - len(self._way) - min(self._setting.slack, max(_FAIR_SLACK, self._budget // 3))
        if spare > 0:
            self._look = left - 1 - spare // (1 + _GROWTH)
            return []
        self._look = left - 1
        return self._way[:1] or self._setting.eos

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ResourceError(
                f"llguidance cannot follow the grammar any further: {_short(self._matcher.get_error())}; "
                "make the grammar or schema simpler"
            )


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise EnvironmentProblem(
            "constrained output needs llguidance: pip install 'onnxkit[grammar]'"
        ) from error
    return llguidance


def _written(name: str, text: str, spaced: bool) -> str:
    """Return the grammar in llguidance's own form.

    `spaced`: the tokenizer begins every text with a space, which decoding takes away again. One may come
    first, then: the model's usual first tokens have it (a Lark grammar must say so itself).
    """
    matchers = _llguidance().LLMatcher
    if name == "--grammar":
        return str(matchers.grammar_from_lark(text))
    if name == "--regex":
        return str(matchers.grammar_from_regex(f" ?(?:{text})" if spaced else text))
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--json-schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError("--json-schema is not possible: a schema is an object, {} for any JSON")
    written = matchers.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITESPACE})
    if not spaced:
        return str(written)
    body = json.dumps(json.loads(written)["grammars"][0]["json_schema"])
    return str(matchers.grammar_from_lark(f'start: " "? body\nbody: %json {body}'))


def _tokenizer(content: dict[str, Any], eos: list[int], vocabulary: int) -> LLTokenizer:
    # Neither pads nor cuts: it turns forced text into tokens.
    text = json.dumps({**content, "padding": None, "truncation": None})
    known = (content.get("model") or {}).get("vocab") or ()
    added = [token["id"] for token in content.get("added_tokens", ())]
    size = max([vocabulary, len(known), *(token + 1 for token in added)])
    try:
        made: LLTokenizer = _llguidance().LLTokenizer(text, n_vocab=size, eos_token=eos or None)
    except ValueError as error:
        raise InputError(
            f"tokenizer.json: constrained output does not work with it: {_short(str(error))}"
        ) from error
    return made


def _spelled_out(space: str) -> dict[str, Any]:
    """Return what replaces SentencePiece's parts of tokenizer.json (T5), which llguidance does not know.

    They must tell each token's bytes, and split any piece of a text without losing a space at its edge.
    """
    replace = {"type": "Replace", "pattern": {"String": space}, "content": " "}
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": space,
            "prepend_scheme": "never",
            "split": True,
        },
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    }


def _short(message: str) -> str:
    """Return the first line of llguidance's message and the one that gives the cause, if another does."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown error"]
    causes = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return ": ".join([lines[0].rstrip(":"), *causes[:1]])[:_LONGEST_MESSAGE]
