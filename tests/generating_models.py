"""Model directories that really generate: tiny decoders with a tokenizer of letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tests.generate import decoder_graphs

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *"Ġ.,!?:<>|Ċ"]  # space and line end as byte-level BPE spells them
TOKENS = [*SPECIALS, *LETTERS]
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role[0] + '>' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def letters() -> Tokenizer:
    """Return a tokenizer whose tokens are letters; <s> stands before a text."""
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def language_model(folder: Path, *, template: str | None = None, **settings: Any) -> Path:
    """Write a decoder-only model of letters with a context of 64 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(decoder_graphs.decoder())
    config = {"model_type": "tiny", "architectures": ["TinyForCausalLM"], "max_position_embeddings": 64}
    _finish(folder, config, settings)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def translator(folder: Path, **settings: Any) -> Path:
    """Write an encoder-decoder of letters, with prefixes for its languages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder_model.onnx").write_bytes(decoder_graphs.encoder())
    (folder / "decoder_model.onnx").write_bytes(decoder_graphs.decoder(cross=True))
    params = {"translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 12}}
    config = {
        "model_type": "tiny", "architectures": ["TinyForConditionalGeneration"], "decoder_start_token_id": 0,
        "is_encoder_decoder": True, "n_positions": 48, "task_specific_params": params,
    }  # fmt: skip
    _finish(folder, config, settings)
    return folder


def _finish(folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> None:
    letters().save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(TOKENS), **config}))
    generation = {"max_new_tokens": 8, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps({**generation, **settings}))


def text_after(prompt: str, count: int) -> str:
    """Return what the language model says, by plain numpy without a cache."""
    tokenizer = letters()
    ids = decoder_graphs.greedy(tokenizer.encode(prompt).ids, count)
    ids = ids[: ids.index(2)] if 2 in ids else ids
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text
