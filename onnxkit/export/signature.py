"""What a graph takes and gives: names, dtypes and axes, and sample values to trace with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from onnxkit.errors import InputError

BATCH, SEQUENCE = "batch_size", "sequence_length"
_SAMPLE_SIZES = {BATCH: 2, SEQUENCE: 7, "num_samples": 4000, "height": 64, "width": 96}
"""Sizes of the dynamic axes in the traced sample: no two alike, none that means something to a model."""

ANY_IMAGE_SIZE = frozenset(
    {"convnext", "convnextv2", "resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet"}
)
"""Model types without position embeddings or windows: height and width stay dynamic."""


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """One input: its torch dtype, and per axis a size or the name of a dynamic axis."""

    name: str
    dtype: torch.dtype
    axes: tuple[int | str, ...]

    def dynamic(self) -> dict[int, str]:
        """Axis number → name, for the axes whose size may change."""
        return {axis: size for axis, size in enumerate(self.axes) if isinstance(size, str)}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs, and output names in the graph's order."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]

    def sample(self, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """Seeded values for a trace. The mask holds a zero: a mask of ones can vanish from a trace."""
        generator = torch.Generator().manual_seed(seed)
        return {given.name: _sample(given, generator) for given in self.inputs}


def _sample(given: GraphInput, generator: torch.Generator) -> torch.Tensor:
    shape = [_SAMPLE_SIZES[size] if isinstance(size, str) else size for size in given.axes]
    if given.name == "attention_mask":
        mask = torch.ones(shape, dtype=given.dtype)
        mask[-1, -2:] = 0
        return mask
    if given.name == "token_type_ids":
        return torch.zeros(shape, dtype=given.dtype)
    if given.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=given.dtype)
    return torch.randint(5, 20, shape, generator=generator, dtype=given.dtype)


def _text_inputs(model: PreTrainedModel, accepted: Sequence[str]) -> list[GraphInput]:
    axes = (BATCH, SEQUENCE)
    names = ["input_ids"]
    if "attention_mask" in accepted:
        names.append("attention_mask")
    if "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return [GraphInput(name=name, dtype=torch.int64, axes=axes) for name in names]


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None


def _image_inputs(model: PreTrainedModel, processor: Mapping[str, Any]) -> list[GraphInput]:
    config = model.config
    channels = int(getattr(config, "num_channels", 3) or 3)
    if config.model_type in ANY_IMAGE_SIZE:
        axes: tuple[int | str, ...] = (BATCH, channels, "height", "width")
        return [GraphInput(name="pixel_values", dtype=torch.float32, axes=axes)]
    wanted = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    given = (wanted["height"], wanted["width"]) if isinstance(wanted, dict) and "height" in wanted else wanted
    size = _size(getattr(config, "image_size", None)) or _size(given)
    if size is None:
        raise InputError(f"the size of {config.model_type}'s images stands neither in config.json "
                         "(image_size) nor in preprocessor_config.json (size)")  # fmt: skip
    return [GraphInput(name="pixel_values", dtype=torch.float32, axes=(BATCH, channels, *size))]


def _spectrogram_inputs(model: PreTrainedModel) -> list[GraphInput]:
    frames = 2 * int(model.config.max_source_positions)
    axes = (BATCH, int(model.config.num_mel_bins), frames)
    return [GraphInput(name="input_features", dtype=torch.float32, axes=axes)]


def _waveform_inputs(model: PreTrainedModel, processor: Mapping[str, Any]) -> list[GraphInput]:
    """Models with group normalization are trained without a mask; their processors say so."""
    axes = (BATCH, "num_samples")
    masked = processor.get("return_attention_mask", model.config.feat_extract_norm == "layer")
    inputs = [GraphInput(name="input_values", dtype=torch.float32, axes=axes)]
    if masked:
        inputs.append(GraphInput(name="attention_mask", dtype=torch.int64, axes=axes))
    return inputs


def graph_inputs(model: PreTrainedModel, processor: Mapping[str, Any]) -> tuple[GraphInput, ...]:
    """The inputs of `model`, told from its forward method, its config and its preprocessor's config.

    Raises:
        InputError: a model of another modality.
    """
    accepted = list(inspect.signature(model.forward).parameters)
    main = model.main_input_name
    if main == "input_ids":
        return tuple(_text_inputs(model, accepted))
    if main == "pixel_values" and "pixel_values" in accepted and "input_ids" not in accepted:
        return tuple(_image_inputs(model, processor))
    if main == "input_features":
        return tuple(_spectrogram_inputs(model))
    if main == "input_values" and hasattr(model.config, "feat_extract_norm"):
        return tuple(_waveform_inputs(model, processor))
    raise InputError(
        f"{type(model).__name__} takes {main} and perhaps more: "
        "only encoders of text, images or audio are exported"
    )
