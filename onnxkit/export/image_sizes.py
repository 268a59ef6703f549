"""Which images a graph is made for: those that the checkpoint's processor hands the model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from onnxkit.errors import InputError
from onnxkit.export.hooks import hooked, moved
from onnxkit.tasks.image_processor import output_size
from onnxkit.tasks.image_settings import parse_settings

Size = tuple[int, int]


def image_size(
    model: PreTrainedModel, config: PretrainedConfig, channels: int, processor: Mapping[str, Any]
) -> Size:
    """Height and width: what the processor makes, if the model takes that, else what `config` says.

    DINOv2 is configured for the images of its training, 518 pixels wide, and used on those of 224 that its
    processor makes. `model`, without weights, is left on meta when it has to be asked.

    Raises:
        InputError: neither tells.
    """
    own, made = _size(getattr(config, "image_size", None)), _processed(processor)
    if own is None or (made not in (None, own) and _takes(model, (1, channels, *(made or own)))):
        own = made or own
    if own is None:
        raise InputError(f"the size of {config.model_type}'s images stands neither in config.json "
                         "(image_size) nor in preprocessor_config.json (size)")  # fmt: skip
    return own


def _processed(processor: Mapping[str, Any]) -> Size | None:
    """What the processor makes of every image; of one that `run` does not have, by its size alone."""
    if not processor:
        return None
    with contextlib.suppress(InputError):
        return output_size(parse_settings(processor, Path("preprocessor_config.json")))
    wanted = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    return _size((wanted.get("height"), wanted.get("width")) if isinstance(wanted, Mapping) else wanted)


def _size(value: Any) -> Size | None:
    edges = (value, value) if isinstance(value, int) else value
    if isinstance(edges, (list, tuple)) and len(edges) == 2 and all(isinstance(edge, int) for edge in edges):
        return edges[0], edges[1]
    return None


def _takes(model: PreTrainedModel, shape: tuple[int, ...]) -> bool:
    """Whether the model runs on images of this shape; some want their own, others stretch their positions."""
    called: Any = moved(model, "meta")
    with contextlib.suppress(Exception), torch.no_grad(), hooked(model):
        called(pixel_values=torch.zeros(shape, device="meta", dtype=model.dtype))
        return True
    return False
