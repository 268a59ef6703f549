"""What transformers' tokenizer classes build anew, whatever tokenizer.json says.

A class such as LlamaTokenizer takes vocabulary, merges and post-processor from the file and makes the
rest itself from tokenizer_config.json (transformers 5, TokenizersBackend.convert_to_native_format). The same
here, so that a text becomes the ids that the model's authors get.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

_FILE_IS_RIGHT = frozenset(
    ("arctic", "fuyu", "internlm2", "internlm3", "jamba", "llava", "llava_next", "minicpm3", "nemotron",
     "phi3", "phimoe", "vipllava", "mistral", "mixtral", "ministral", "ministral3", "mistral3", "pixtral")
)  # fmt: skip
"""Model types whose tokenizer_class is known to be wrong (tokenization_auto.py), and Mistral's."""
_BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "GPTNeoXTokenizer", "RobertaTokenizer", "BartTokenizer")


def rebuild(tokenizer: Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Change `tokenizer` to what the class that `settings` name makes of it.

    Args:
        tokenizer: as tokenizer.json says.
        settings: tokenizer_config.json.
        config: the model's config.json.
    """
    name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        _bert(tokenizer, settings)
    elif name in _BYTE_LEVEL_CLASSES and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        space = settings.get("add_prefix_space")
        if isinstance(space, bool):
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    elif (
        name == "LlamaTokenizer"
        and config.get("model_type") not in _FILE_IS_RIGHT
        and isinstance(tokenizer.model, models.BPE)
        and tokenizer.model.byte_fallback
    ):
        _llama(tokenizer, settings)


def _bert(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    normalizer = tokenizer.normalizer
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
    names["tokenize_chinese_chars"] = "handle_chinese_chars"
    for ours, theirs in names.items():
        if ours in settings and settings[ours] != getattr(normalizer, theirs):
            setattr(normalizer, theirs, settings[ours])
            tokenizer.normalizer = normalizer


def _llama(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    space = settings.get("add_prefix_space") is not False
    scheme = "never" if not space else "always" if settings.get("legacy") else "first"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space else steps)
