"""Where a Transformers config.json says something: which nested part counts, each family's names for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]

_TEXT_PARTS = ("decoder", "generator", "text_config")
"""The part that reads and writes text: the first that is there, in transformers' order."""
_READERS = ("text_config", "encoder")
"""The part that reads a text: the first that is there."""
_OTHER_PARTS = ("vision_config", "audio_config", "encoder", "backbone_config")
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
_LOCAL_LAYERS = frozenset({"sliding_attention", "chunked_attention", "local"})
_READ = ("max_position_embeddings", "n_positions", "max_sequence_length")
_WRITTEN = (
    "max_target_positions", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
    "max_sequence_length",
)  # fmt: skip
"""Where the longest sequence stands that positions reach, the first match first."""
_POSITIONS_AFTER_PADDING = frozenset(
    {
        "altclip_text_model", "bertweet", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert",
        "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "mra", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
"""Model types that count positions from `padding_idx + 1`, so that a table of 514 holds 512."""
_CONVOLUTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {"moonshine": ((127, 64), (7, 3), (3, 2))}
"""Kernels and strides that a model type has in its code."""
_HEADS = ("num_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_heads")


def text_part(config: Config) -> Config:
    """Return what `config` says of the model that reads and writes text, its nested part over the whole."""
    return {**config, **nested_text(config)}


def reading_part(config: Config) -> Config:
    """Return what `config` says of what reads a text: its nested part, or all where there is none."""
    parts = (config.get(name) for name in _READERS)
    return next((part for part in parts if isinstance(part, Mapping)), config)


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


def input_positions(config: Config) -> int | None:
    """Return how many tokens of a text positions reach, the encoder's where there is one; None: not told."""
    return _reached(reading_part(config), _READ)


def decoder_positions(config: Config) -> int | None:
    """Return how many tokens, read and written, the positions of a decoder reach; None: not told."""
    return _reached(text_part(config), _WRITTEN)


def position_offset(config: Config) -> int:
    """Return the position of a text's first token: `padding_idx + 1` in RoBERTa's family, else 0."""
    if str(config.get("model_type")) not in _POSITIONS_AFTER_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return (padding if isinstance(padding, int) else 1) + 1


def waveform_convolutions(config: Config) -> tuple[tuple[int, int], ...]:
    """Return kernel and stride of each convolution that makes frames of samples; empty: not told."""
    kernels, strides = config.get("conv_kernel"), config.get("conv_stride")
    if not isinstance(kernels, list) or not isinstance(strides, list) or len(kernels) != len(strides):
        return _CONVOLUTIONS.get(str(config.get("model_type")), ())
    told = all(isinstance(size, int) and size > 0 for size in (*kernels, *strides))
    return tuple(zip(kernels, strides, strict=True)) if told else ()


def shortest_waveform(config: Config) -> int:
    """Return how many samples one frame is made of; 1 where the convolutions are not told."""
    least = 1
    for kernel, stride in reversed(waveform_convolutions(config)):
        least = (least - 1) * stride + kernel
    return least


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


def _reached(part: Config, names: Iterable[str]) -> int | None:
    sizes = (part.get(name) for name in names)
    size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    return None if size is None else size - position_offset(part)


def _parts(config: Config) -> Iterator[Config]:
    yield text_part(config)
    yield from (part for name in _OTHER_PARTS if isinstance(part := config.get(name), Mapping))
