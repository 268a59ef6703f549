"""Marian's and M2M100's tokenizers from their SentencePiece files, without tokenizer.json."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from onnxkit.errors import InputError
from onnxkit.safety import read_sentencepiece
from onnxkit.tasks import task_for
from tests.tasks.generating_dirs import encoder_decoder_dir

TEXT = [
    "the cat sat on the mat", "a cat and a hat", "the quick brown fox", "how much is the fish",
    "where are you now", "it is what it is", "numbers one two three", "naïve café owners",
    "to be or not to be", "that is the question",
] * 20  # fmt: skip
SENTENCES = ["the cat", "  two  spaces ", "naïve fox?", "unbekannt ж", "", "a</s>b", "that is what it is"]


def field(number: int, value: int | float | bytes) -> bytes:
    """Encode one field of a protobuf message."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + varint(len(value)) + value
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def varint(value: int) -> bytes:
    made = b""
    while value > 0x7F:
        made, value = made + bytes([value & 0x7F | 0x80]), value >> 7
    return made + bytes([value])


def model(pieces: list[tuple[str, float]], *, kind: int = 1) -> bytes:
    """Encode a SentencePiece model of normal pieces, <unk> first."""
    entries = [field(1, field(1, b"<unk>") + field(2, 0.0) + field(3, 2))]
    entries += [field(1, field(1, piece.encode()) + field(2, score)) for piece, score in pieces]
    return b"".join(entries) + field(2, field(3, kind)) + field(3, field(1, b"identity"))


def marian(folder: Path, **settings: Any) -> Any:
    pieces = [("▁a", -1.0), ("▁", -2.0), ("b", -2.5), ("a", -2.6), ("▁ab", -1.5)]
    (folder / "source.spm").write_bytes(model(pieces))
    known = ["</s>", "<unk>", *(piece for piece, _ in pieces), "▁ziel", ">>deu<<", ">>nld<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(known)}))
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "source_lang": "eng"}
    config = {"tokenizer_class": "MarianTokenizer", **named, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return encoder_decoder_dir(folder, "translation")


def test_marian_texts_and_language_codes(tmp_path: Path) -> None:
    task: Any = task_for(marian(tmp_path), target_lang="nld")
    ids = task.encode({"text": "ab  a b"}).features["input_ids"].tolist()
    assert ids == [9, 6, 2, 3, 4, 0]  # >>nld<< ▁ab ▁a ▁ b </s>
    assert task.text_of([7, 6, 0]) == "ziel ab"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"source.spm": b"\x0a\xff"}, "source.spm: not a readable SentencePiece model"),
        ({"source.spm": b""}, "source.spm: a SentencePiece model of words"),
        ({"source.spm": model([("a", 0.0)], kind=3)}, "words or characters"),
        ({"source.spm": b"\x0b"}, "wire type 3"),
        ({"source.spm": b"\xff" * 12}, "not a readable SentencePiece model"),
        ({"vocab.json": b'{"a": 0}'}, "vocab.json: not the ids"),
        ({"vocab.json": b'{"<unk>": 0, "</s>": 5}'}, "vocab.json: not the ids"),
    ],
)
def test_damaged_files(damage: dict[str, bytes], says: str, tmp_path: Path) -> None:
    folder = marian(tmp_path)
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        task_for(folder, target_lang="nld")


def test_separate_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="separate vocabularies"):
        task_for(marian(tmp_path, separate_vocabs=True), target_lang="nld")


def trained(folder: Path, name: str, kind: str) -> list[str]:
    """Train a SentencePiece model; return its pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (folder / "text.txt").write_text("\n".join(TEXT))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "made"), vocab_size=70, model_type=kind,
        character_coverage=1.0, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "made.model").rename(folder / name)
    return [piece.text for piece in read_sentencepiece(folder / name).pieces]


def test_marian_ids_equal_transformers(tmp_path: Path) -> None:
    pieces = trained(tmp_path, "source.spm", "unigram")
    (tmp_path / "target.spm").write_bytes((tmp_path / "source.spm").read_bytes())
    from transformers import MarianTokenizer

    known = ["</s>", "<unk>", *(piece for piece in pieces if piece[0] != "<"), ">>deu<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(known)}))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "</s>"}))
    theirs = MarianTokenizer.from_pretrained(tmp_path)
    theirs.punc_normalizer = lambda text: text
    task: Any = task_for(encoder_decoder_dir(tmp_path, "translation"), target_lang="deu")
    for text in SENTENCES:
        ids = task.encode({"text": text}).features["input_ids"].tolist()
        assert ids == theirs(f">>deu<< {text}")["input_ids"], text
        assert task.text_of(ids[1:]).strip() == theirs.decode(ids[1:], skip_special_tokens=True)


def test_m2m100_ids_equal_transformers(tmp_path: Path) -> None:
    pieces = trained(tmp_path, "sentencepiece.bpe.model", "bpe")
    from transformers import M2M100Tokenizer

    known = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece in pieces if piece[0] != "<")]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(known)}))
    settings = {"tokenizer_class": "M2M100Tokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = M2M100Tokenizer.from_pretrained(tmp_path, src_lang="fr")
    task: Any = task_for(encoder_decoder_dir(tmp_path, "translation"), source_lang="fr", target_lang="de")
    for text in SENTENCES:
        assert task.encode({"text": text}).features["input_ids"].tolist() == theirs(text)["input_ids"], text
    assert task.generation["forced_bos_token_id"] == theirs.get_lang_id("de")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_speech2text_writes_as_transformers(kind: str, tmp_path: Path) -> None:
    pieces = trained(tmp_path, "sentencepiece.bpe.model", kind)
    from transformers import Speech2TextTokenizer

    known = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece in pieces if piece[0] != "<"), "<lang:de>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(known)}))
    settings = {"tokenizer_class": "Speech2TextTokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = Speech2TextTokenizer.from_pretrained(tmp_path)
    task: Any = task_for(encoder_decoder_dir(tmp_path))
    assert task.setup.tokenizer.get_vocab_size() == len(known)  # no languages of M2M100
    for text in ("the cat sat", "to be or not"):
        ids = theirs(text)["input_ids"]
        assert task.text_of(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert task.text_of([len(known) - 1, *ids]) == text
