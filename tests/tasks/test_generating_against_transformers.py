"""Prompts, chats and languages become the ids that transformers' tokenizers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

from onnxkit.errors import InputError
from onnxkit.tasks.text2text_generation import Text2TextGeneration
from onnxkit.tasks.text_generation import TextGeneration
from onnxkit.tasks.translation import Translation
from tests.tasks.chat_templates import TEMPLATES
from tests.tasks.generating_dirs import byte_fallback, decoder_dir, encoder_decoder_dir, sample, write

CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello there"}],
    "three": [
        {"role": "user", "content": " Hi! "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
        {"role": "user", "content": "And <b> now?"},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "nulls": [{"role": "user", "content": "Hi", "name": None, "tool_calls": None}],
    "reasoning": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "thinking": "greet"},
        {"role": "user", "content": "Bye"},
    ],
    "continued": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one, two,"}],
}


@pytest.fixture(scope="module")
def pydoc(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    return TextGeneration(sample("pydoc-gpt2", tmp_path_factory.mktemp("pydoc")))


def test_prompts_of_a_byte_level_model(pydoc: TextGeneration) -> None:
    theirs = AutoTokenizer.from_pretrained(pydoc.model.path)

    @settings(max_examples=100, deadline=None)
    @given(st.text(min_size=1))
    def check(text: str) -> None:
        assert pydoc.encode({"prompt": text}).extra.ids.tolist() == theirs(text)["input_ids"]

    check()


@pytest.mark.parametrize("kind", ["TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("legacy", [None, False, True])
@pytest.mark.parametrize("text", ["the cat", " the cats é€", "<s>the</s>\ncat", "\n"])
def test_prompts_of_llama_tokenizers(kind: str, legacy: bool | None, text: str, tmp_path: Path) -> None:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    extra = {} if legacy is None else {"legacy": legacy}
    write(tmp_path, byte_fallback(), {"tokenizer_class": kind, **named, **extra})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    task = TextGeneration(decoder_dir(tmp_path))
    assert task.encode({"prompt": text}).extra.ids.tolist() == theirs(text)["input_ids"]


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3"])
@pytest.mark.parametrize("legacy", [None, False, True])
@pytest.mark.parametrize("text", ["the cat", " the cats é€", "<s>the</s>\ncat"])
def test_prompts_of_older_llama_files(family: str, legacy: bool | None, text: str, tmp_path: Path) -> None:
    """Files of before 2024 put the space sign there by a normalizer; transformers 5 rebuilds that."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    empty = json.loads(tokenizer.to_str())
    empty["pre_tokenizer"] = None
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    extra = {} if legacy is None else {"legacy": legacy}
    write(
        tmp_path,
        Tokenizer.from_str(json.dumps(empty)),
        {"tokenizer_class": "LlamaTokenizer", **named, **extra},
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    task = TextGeneration(decoder_dir(tmp_path, model_type=family))
    assert task.encode({"prompt": text}).extra.ids.tolist() == theirs(text)["input_ids"]


@pytest.mark.parametrize("space", [True, False])
def test_a_space_before_the_first_word(space: bool, tmp_path: Path) -> None:
    model = sample("pydoc-gpt2", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_prefix_space": space}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert TextGeneration(model).encode({"prompt": "word"}).extra.ids.tolist() == theirs("word")["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_chats(name: str, chat: str, tmp_path: Path) -> None:
    model = sample("pydoc-gpt2", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = CHATS[chat]
    continued = messages[-1]["role"] == "assistant"
    task = TextGeneration(model)
    try:
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=not continued, continue_final_message=continued, tokenize=False
        )
    except Exception:  # whatever transformers raises, ours must refuse it, too
        with pytest.raises(InputError):
            task.template.render(messages, where="the chat")
        return
    assert task.template.render(messages, where="the chat") == expected
    ids = theirs(expected, add_special_tokens=False)["input_ids"]
    assert task.encode({"messages": messages}).extra.ids.tolist() == ids


@pytest.mark.parametrize("form", ["text", "named list"])
def test_templates_in_the_tokenizers_settings(form: str, tmp_path: Path) -> None:
    model = sample("pydoc-gpt2", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    template: Any = TEMPLATES["chatml"]
    if form == "named list":
        template = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CHATS["three"], add_generation_prompt=True, tokenize=False)
    assert TextGeneration(model).template.render(CHATS["three"], where="it") == expected


def test_texts_of_an_encoder_decoder(tmp_path: Path) -> None:
    task = Text2TextGeneration(sample("numbers-t5", tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("translate English to German: one", "", "x " * 300):
        row = task.encode({"text": text})
        assert row.features["input_ids"].tolist() == theirs(text, truncation=True)["input_ids"]
        assert row.truncated == (len(theirs(text)["input_ids"]) > 128)


FAMILIES = {
    "nllb": (NllbTokenizer, ("eng_Latn", "deu_Latn", "fra_Latn"), {}),
    "nllb, legacy": (NllbTokenizer, ("eng_Latn", "deu_Latn", "fra_Latn"), {"legacy_behaviour": True}),
    "mbart": (MBartTokenizer, ("en_XX", "de_DE", "fr_XX"), {}),
    "mbart50": (MBart50Tokenizer, ("en_XX", "de_DE", "fr_XX"), {}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_language_tokens(name: str, tmp_path: Path) -> None:
    kind, languages, more = FAMILIES[name]
    theirs = kind(vocab=language_vocabulary(kind), **more)
    theirs.save_pretrained(tmp_path)
    source, target = languages[1], languages[2]
    task = Translation(
        encoder_decoder_dir(tmp_path, "translation", decoder_start_token_id=2),
        source_lang=source, target_lang=target,
    )  # fmt: skip
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs._build_translation_inputs(
        "the cat", return_tensors=None, src_lang=source, tgt_lang=target
    )
    row = task.encode({"text": "the cat"})
    assert row.features["input_ids"].tolist() == expected["input_ids"]
    assert task.generation["forced_bos_token_id"] == expected["forced_bos_token_id"]


def language_vocabulary(kind: type) -> Any:
    pieces = ["▁the", "▁cat", "▁", "t", "h", "e", "c", "a"]
    if kind is NllbTokenizer:
        return {piece: index for index, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    return [(piece, -1.0) for piece in ["<s>", "<pad>", "</s>", "<unk>", *pieces]]
