"""What a model's configuration says about the sizes and ids that its inputs may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxkit.artifact.configuration import (
    attention_heads,
    decoder_positions,
    input_positions,
    positive,
    shortest_waveform,
)

_SPECIAL_IDS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id",
    "decoder_start_token_id", "unk_token_id",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes that inputs are made from; a None is a size that the configuration does not tell."""

    configured: bool = False
    vocab_size: int | None = None
    pad_id: int = 0
    special_ids: frozenset[int] = frozenset()
    positions: int | None = None
    decoder_positions: int | None = None
    segments: int = 2
    heads: int = 16
    image_size: tuple[int, int] | None = None
    channels: int = 3
    mel_bins: int | None = None
    frames: int | None = None
    shortest_wave: int = 1


def random_ids(
    known: Geometry, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids from the vocabulary, special ones excepted, where enough others are left."""
    vocabulary = known.vocab_size or 100
    ids = rng.integers(0, vocabulary, shape)
    if len(known.special_ids) < vocabulary // 2:
        while (clash := np.isin(ids, list(known.special_ids))).any():
            ids[clash] = rng.integers(0, vocabulary, int(clash.sum()))
    return ids


def geometry(config: Mapping[str, Any]) -> Geometry:
    """Read a Transformers config.json; anything missing or odd is simply not known."""
    pad = config.get("pad_token_id")
    frames = positive(config, "max_source_positions")
    return Geometry(
        configured="model_type" in config,
        vocab_size=positive(config, "vocab_size"),
        pad_id=pad if isinstance(pad, int) and pad >= 0 else 0,
        special_ids=_special_ids(config),
        positions=input_positions(config) or decoder_positions(config),
        decoder_positions=decoder_positions(config),
        segments=positive(config, "type_vocab_size") or (1 if "model_type" in config else 2),
        heads=attention_heads(config) or 16,
        image_size=_image_size(config),
        channels=positive(config, "num_channels", "in_chans") or 3,
        mel_bins=positive(config, "num_mel_bins", "feature_size"),
        frames=positive(config, "max_length") if config.get("model_type") == "audio-spectrogram-transformer"
        else 2 * frames if frames else None,
        shortest_wave=shortest_waveform(config),
    )  # fmt: skip


def _special_ids(config: Mapping[str, Any]) -> frozenset[int]:
    ids: set[int] = set()
    for name in _SPECIAL_IDS:
        value = config.get(name)
        ids.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return frozenset(ids)


def _image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    for part in (config, config.get("vision_config"), config.get("backbone_config")):
        size = part.get("image_size") if isinstance(part, Mapping) else None
        if isinstance(size, int):
            return size, size
        if isinstance(size, Mapping):
            size = [size.get("height"), size.get("width")]
        if isinstance(size, list) and len(size) == 2 and all(isinstance(each, int) for each in size):
            return size[0], size[1]
    return None
