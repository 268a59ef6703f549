"""Loads a model directory's tokenizer with the `tokenizers` library, set up as transformers would."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from onnxkit.artifact.configuration import input_positions
from onnxkit.errors import InputError
from onnxkit.safety import read_json, regular_file
from onnxkit.tasks.base import Side
from onnxkit.tasks.rebuilt import rebuild
from onnxkit.tasks.sentencepiece import from_sentencepiece

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNLIMITED = 10**20
"""transformers writes 1e30 for "no limit" (its LARGE_INTEGER is 1e20)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSetup:
    """A tokenizer and what its configuration says about padding and length.

    Attributes:
        tokenizer: without truncation and padding; whoever owns it sets truncation.
        specials: {"mask_token": "[MASK]", …}, those that are set.
        pad_id: the token id to pad with; 0 where there is no padding token.
        pad_type_id: the token type to pad with.
        padding_side: where padding goes.
        truncation_side: where tokens are cut.
        model_max_length: the tokenizer's own limit in tokens, None when it has none.
        clean_up_spaces: whether decoded text loses the spaces before punctuation.
    """

    tokenizer: Tokenizer
    specials: Mapping[str, str]
    pad_id: int
    pad_type_id: int
    padding_side: Side
    truncation_side: Side
    model_max_length: int | None
    clean_up_spaces: bool = False

    def token_id(self, role: str) -> int | None:
        """Return the id of a special token by its role ("mask_token"), None when there is none."""
        token = self.specials.get(role)
        return None if token is None else self.tokenizer.token_to_id(token)


def load_tokenizer(model: ModelDir) -> TokenizerSetup:
    """Read tokenizer.json, tokenizer_config.json and special_tokens_map.json of `model.path`.

    Raises:
        InputError: tokenizer.json is missing or damaged, and there are no files that it can be made of.
    """
    folder = model.path
    settings = _optional_json(folder / "tokenizer_config.json")
    tokenizer = _read_tokenizer(folder / "tokenizer.json", settings)
    specials = {**_optional_json(folder / "special_tokens_map.json"), **settings}
    padding = tokenizer.padding or {}
    truncation = tokenizer.truncation or {}
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rebuild(tokenizer, settings, model.config)
    named = _add_specials(tokenizer, specials)
    if padding:
        named.setdefault("pad_token", str(padding["pad_token"]))
    pad_id = tokenizer.token_to_id(named["pad_token"]) if named.get("pad_token") else None
    limit = settings.get("model_max_length", settings.get("max_len"))
    return TokenizerSetup(
        tokenizer=tokenizer,
        specials=named,
        pad_id=_first_int(pad_id, model.config.get("pad_token_id"), 0),
        pad_type_id=_first_int(settings.get("pad_token_type_id"), padding.get("pad_type_id"), 0),
        padding_side=_side(settings.get("padding_side", padding.get("direction"))),
        truncation_side=_side(settings.get("truncation_side", truncation.get("direction"))),
        model_max_length=int(limit) if isinstance(limit, int | float) and 0 < limit < _UNLIMITED else None,
        clean_up_spaces=bool(settings.get("clean_up_tokenization_spaces")),
    )


def padding_side(model: ModelDir) -> Side | None:
    """Where the directory's tokenizer pads; None where there is no tokenizer."""
    file = model.path / "tokenizer_config.json"
    return _side(_optional_json(file).get("padding_side")) if file.exists() else None


def length_limit(model: ModelDir, setup: TokenizerSetup, wanted: int | None = None) -> int | None:
    """Return how many tokens a text may have: the least of what `wanted`, tokenizer and model allow.

    A directory of sentence-transformers says in sentence_bert_config.json how many tokens its
    embeddings were trained on. None when nothing limits the length.

    Raises:
        InputError: `wanted` is more than the model has positions for.
    """
    positions = input_positions(model.config)
    if wanted is not None:
        if positions is not None and wanted > positions:
            raise InputError(
                f"{model.path}: the model has {positions} positions; --max-length {wanted} is too long"
            )
        return wanted
    trained = _optional_json(model.path / "sentence_bert_config.json").get("max_seq_length")
    limits = [setup.model_max_length, positions, trained if isinstance(trained, int) else None]
    return min((limit for limit in limits if limit), default=None)


def _read_tokenizer(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    if not path.exists():
        made = from_sentencepiece(path.parent, settings)
        if made is not None:
            return made
        raise InputError(
            f"{path.parent}: tokenizer.json is missing; write it there with "
            "transformers' AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
        )
    regular_file(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception for whatever is wrong in the file
        raise InputError(f"{path}: not a readable tokenizer: {error}") from error


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _add_specials(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    """Make every named special token one in the tokenizer too; return them by role."""
    named = {role: settings[role] for role in _SPECIAL if settings.get(role)}
    already = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = [_added_token(value) for value in named.values() if _content(value) not in already]
    if missing:
        tokenizer.add_special_tokens(missing)
    return {role: _content(value) for role, value in named.items()}


def _content(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _added_token(value: Any) -> AddedToken:
    if not isinstance(value, dict):
        return AddedToken(str(value), special=True, normalized=False)
    flags = {
        key: bool(value[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value
    }
    return AddedToken(_content(value), special=True, **flags)


def _first_int(*values: Any) -> int:
    return next((value for value in values if isinstance(value, int) and value >= 0), 0)


def _side(value: Any) -> Side:
    return "left" if str(value).lower() == "left" else "right"
