"""Tokenizers that transformers has in Python only: Marian, M2M100 and Speech2Text, from their SentencePiece
files.

Such a directory has no tokenizer.json: a SentencePiece model cuts the text, and vocab.json gives the
pieces their ids. Both together make a `tokenizers.Tokenizer` of the same ids. Two differences remain:
pieces of the SentencePiece model that vocab.json lacks are not used (transformers: unknown tokens), and
the text is normalized by the model's own rules alone (transformers: for Marian also by sacremoses, where
that is installed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from onnxkit.errors import InputError
from onnxkit.safety import read_json, read_sentencepiece
from onnxkit.safety.sentencepiece_files import SentencePieces

_MAX_VOCABULARY_BYTES = 32 * 1024 * 1024
_NEVER = -1e6
"""The score of what must not be found in a text: tokens of the other language, language codes."""
_SPACE = "▁"
_CODE = re.compile(r"^>>.+<<$")
_M2M100_LANGUAGES = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha "
    "he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne "
    "nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo "
    "xh yi yo zh zu"
)
_WMT21_LANGUAGES = "en ha is ja cs ru zh de"
"""Languages in the order of their ids, which follow those of vocab.json (tokenization_m2m_100.py)."""


def from_sentencepiece(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer of a directory with SentencePiece files, None where it has none of these.

    Args:
        folder: the model directory.
        settings: its tokenizer_config.json.

    Raises:
        InputError: a damaged file, or separate vocabularies for source and target.
    """
    vocabulary = folder / "vocab.json"
    if not vocabulary.is_file():
        return None
    if (folder / "source.spm").is_file():
        if settings.get("separate_vocabs"):
            raise InputError(f"{folder}: a tokenizer of separate vocabularies is not supported")
        return _marian(_ids(vocabulary), read_sentencepiece(folder / "source.spm"))
    if (folder / "sentencepiece.bpe.model").is_file():
        pieces = read_sentencepiece(folder / "sentencepiece.bpe.model")
        if settings.get("tokenizer_class") == "Speech2TextTokenizer":
            return _of_pieces(_ids(vocabulary), pieces)
        wmt = settings.get("language_codes") == "wmt21"
        return _m2m100(_ids(vocabulary), pieces, (_WMT21_LANGUAGES if wmt else _M2M100_LANGUAGES).split())
    return None


def _marian(ids: Mapping[str, int], source: SentencePieces) -> Tokenizer:
    """Unigram pieces with the ids of vocab.json, which holds both languages."""
    scores = {piece.text: piece.score for piece in source.pieces if piece.kind == "normal"}
    by_id = sorted(ids, key=lambda piece: ids[piece])
    model = models.Unigram([(piece, scores.get(piece, _NEVER)) for piece in by_id], ids["<unk>"], False)
    tokenizer = _with_spaces(Tokenizer(model), source)
    tokenizer.add_special_tokens([token for token in ("</s>", "<unk>", "<pad>") if token in ids])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in by_id if _CODE.match(piece)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return tokenizer


def _m2m100(ids: Mapping[str, int], pieces: SentencePieces, languages: Sequence[str]) -> Tokenizer:
    """Pieces with the ids of vocab.json, and a token for each language after them."""
    tokenizer = _of_pieces(ids, pieces)
    tokenizer.add_special_tokens([f"__{language}__" for language in languages])
    return tokenizer


def _of_pieces(ids: Mapping[str, int], pieces: SentencePieces) -> Tokenizer:
    """Byte pairs or unigrams with the ids of vocab.json, languages' tokens among them (Speech2Text)."""
    if pieces.algorithm == "bpe":
        merges = _merges(
            [piece.text for piece in pieces.pieces if piece.kind == "normal" and piece.text in ids]
        )
        model: Any = models.BPE(dict(ids), merges, unk_token="<unk>", fuse_unk=True)
    else:
        scores = {piece.text: piece.score for piece in pieces.pieces if piece.kind == "normal"}
        by_id = sorted(ids, key=lambda piece: ids[piece])
        model = models.Unigram([(piece, scores.get(piece, _NEVER)) for piece in by_id], ids["<unk>"], False)
    tokenizer = _with_spaces(Tokenizer(model), pieces)
    tokenizer.add_special_tokens([token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in ids])
    tokenizer.add_special_tokens([token for token in ids if token.startswith("<lang:")])
    return tokenizer


def _with_spaces(tokenizer: Tokenizer, pieces: SentencePieces) -> Tokenizer:
    """Normalize and mark spaces as SentencePiece does."""
    steps: list[Any] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.joins_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    scheme: Any = "always" if pieces.leading_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(_SPACE, scheme)
    return tokenizer


def _merges(ranked: Sequence[str]) -> list[tuple[str, str]]:
    """Return the merges that make each piece of two others, in the order of the pieces.

    A SentencePiece BPE model ranks pieces, not merges: the pair whose whole ranks best is joined first.
    """
    rank = {piece: place for place, piece in enumerate(ranked)}
    merges = []
    for piece in ranked:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [pair for pair in halves if pair[0] in rank and pair[1] in rank]
        merges += sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return merges


def _ids(path: Path) -> dict[str, int]:
    found = read_json(path, trust_remote_code=True, max_bytes=_MAX_VOCABULARY_BYTES)
    ids = {str(piece): value for piece, value in found.items() if isinstance(value, int)}
    if "<unk>" not in ids or "</s>" not in ids or sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"{path}: not the ids from 0 of a vocabulary with <unk> and </s>")
    return ids
