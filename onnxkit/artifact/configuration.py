"""Where a Transformers config.json says something: which nested part counts, each family's names for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]

_TEXT_PARTS = ("decoder", "generator", "text_config")
"""The part that reads and writes text: the first that is there, in transformers' order."""
_OTHER_PARTS = ("vision_config", "audio_config", "encoder", "backbone_config")
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
_LOCAL_LAYERS = frozenset({"sliding_attention", "chunked_attention", "local"})
_HEADS = ("num_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_heads")


def text_part(config: Config) -> Config:
    """Return what `config` says of the model that reads and writes text, its nested part over the whole."""
    return {**config, **nested_text(config)}


def nested_text(config: Config) -> Config:
    """Return the nested part that reads and writes text; empty where `config` is flat."""
    parts = (config.get(name) for name in _TEXT_PARTS)
    return next((part for part in parts if part and isinstance(part, Mapping)), {})


def positive(config: Config, *names: str) -> int | None:
    """Return the first positive integer that has one of `names`, in the text part before the others."""
    for part in _parts(config):
        for name in names:
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def attention_heads(config: Config) -> int | None:
    """Return how many query heads a layer has; None where the configuration does not tell."""
    return positive(config, *_HEADS)


def attention_window(config: Config) -> int | None:
    """Return how many tokens back a layer looks at most; None where all look at everything."""
    text = text_part(config)
    lists = (text.get(name) for name in ("layer_types", "attention_layers"))
    kinds = {str(kind) for each in lists if isinstance(each, list) for kind in each}
    if text.get("use_sliding_window") is False or (kinds and not kinds & _LOCAL_LAYERS):
        return None
    return positive(text, *_WINDOWS)


def turning_length(config: Config) -> int | None:
    """Return how many tokens a text may have before LongRoPE takes other factors for all of them
    (arXiv:2402.13753); None: any."""
    text = text_part(config)
    given = (text.get(name) for name in ("rope_parameters", "rope_scaling"))
    settings = next((each for each in given if isinstance(each, Mapping)), {})
    kind = settings.get("rope_type", settings.get("type"))
    if kind != "longrope":
        return None
    return positive({**text, **settings}, "original_max_position_embeddings")


def _parts(config: Config) -> Iterator[Config]:
    yield text_part(config)
    yield from (part for name in _OTHER_PARTS if isinstance(part := config.get(name), Mapping))
