"""From the token of each frame to text: connectionist temporal classification, decoded greedily."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxkit.errors import InputError
from onnxkit.safety import read_json

Word = tuple[str, int, int]
"""A word, its first frame, and the frame after its last."""

_MAX_VOCABULARY_BYTES = 64 * 1024 * 1024
"""Multilingual checkpoints keep the vocabularies of a thousand languages in one file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtcVocabulary:
    """The tokens by id, as transformers' Wav2Vec2CTCTokenizer reads them.

    Attributes:
        tokens: id -> token.
        blank: what stands for "nothing new", and separates a letter from the same letter again.
        delimiter: what separates words; `space` is what it becomes.
        space: usually " ".
        lower: write the text in lower case.
    """

    tokens: Mapping[int, str]
    blank: str = "<pad>"
    delimiter: str = "|"
    space: str = " "
    lower: bool = False

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of the frames' ids: repetitions are one, blanks are none."""
        return self._cased("".join(char for char, _, _ in self._characters(ids)).strip())

    def words(self, ids: Sequence[int]) -> list[Word]:
        """Return the words of the frames' ids, and where they stand."""
        found = []
        for is_space, group in itertools.groupby(self._characters(ids), lambda one: one[0] == self.space):
            if not is_space:
                letters = list(group)
                word = self._cased("".join(char for char, _, _ in letters))
                found.append((word, letters[0][1], letters[-1][2]))
        return found

    def _characters(self, ids: Sequence[int]) -> list[Word]:
        characters, start = [], 0
        for token, group in itertools.groupby(self.tokens.get(one, "<unk>") for one in ids):
            end = start + sum(1 for _ in group)
            if token != self.blank:
                characters.append((self.space if token == self.delimiter else token, start, end))
            start = end
        return characters

    def _cased(self, text: str) -> str:
        return text.lower() if self.lower else text


def load_vocabulary(folder: Path) -> CtcVocabulary:
    """Read vocab.json, added_tokens.json and tokenizer_config.json of `folder`.

    Raises:
        InputError: vocab.json is missing or of the wrong form, or has not the language that
            tokenizer_config.json names.
    """
    path = folder / "vocab.json"
    if not path.is_file():
        raise InputError(f"{path}: missing; copy it from the checkpoint (the tokens of a CTC model)")
    entries: Mapping[str, Any] = read_json(path, max_bytes=_MAX_VOCABULARY_BYTES)
    settings = _optional(folder / "tokenizer_config.json")
    language = settings.get("target_lang")
    if language is not None:
        if not isinstance(entries.get(language), dict):
            raise InputError(f"{path}: has no language {language!r}, which tokenizer_config.json names")
        entries = entries[language]
    pairs = {**entries, **_optional(folder / "added_tokens.json")}
    if not all(isinstance(value, int) for value in pairs.values()):
        raise InputError(f"{path}: expected token: id; a file of several languages needs target_lang")
    tokens = {value: str(key) for key, value in pairs.items()}
    added = settings.get("added_tokens_decoder")
    for value, token in added.items() if isinstance(added, dict) else ():
        tokens.setdefault(int(value), _content(token))
    return CtcVocabulary(
        tokens=tokens,
        blank=_content(settings.get("pad_token") or "<pad>"),
        delimiter=_content(settings.get("word_delimiter_token") or "|"),
        space=str(settings.get("replace_word_delimiter_char") or " "),
        lower=bool(settings.get("do_lower_case")),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)
