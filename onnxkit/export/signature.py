"""What a graph takes and gives: names, dtypes and axes, and sample values to trace with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from onnxkit.errors import InputError
from onnxkit.export.image_sizes import image_size

BATCH, SEQUENCE = "batch_size", "sequence_length"
PAST_LENGTH, TOTAL_LENGTH = "past_sequence_length", "total_sequence_length"
ENCODER_LENGTH = "encoder_sequence_length"
PAST, PRESENT = "past_key_values.", "present."
KEPT_LOGITS = "num_logits_to_keep"
ENCODER_MASK = "encoder_attention_mask"
_SAMPLE_SIZES = {
    BATCH: 2, SEQUENCE: 7, PAST_LENGTH: 5, TOTAL_LENGTH: 12, ENCODER_LENGTH: 9, "num_samples": 4300,
    "num_frames": 43, "height": 64, "width": 96,
}  # fmt: skip
"""Sizes of the dynamic axes in the traced sample: no two alike, none that means something to a model.

So many samples are an odd number of frames, 13: SEW joins two to one, and a trace must see it pad one."""

_AUDIO = ("input_features", "input_values")
_SHAPES = "spatial_shapes"
"""SigLIP 2 cannot do without those of its images, though its heads make them optional."""
WAVEFORMS = frozenset({"moonshine"})
"""Model types that read waveforms by convolutions which their configuration does not describe."""

ANY_IMAGE_SIZE = frozenset(
    {"convnext", "convnextv2", "resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet"}
)
"""Model types without position embeddings or windows: height and width stay dynamic (unless the padding, as
TensorFlow does it, follows from them)."""


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """One input: its torch dtype, and per axis a size or the name of a dynamic axis.

    With a `default` the graph holds an initializer of the input's name and this value: a caller need not
    feed it.
    """

    name: str
    dtype: torch.dtype
    axes: tuple[int | str, ...]
    default: int | None = None

    def dynamic(self) -> dict[int, str]:
        """Axis number → name, for the axes whose size may change."""
        return {axis: size for axis, size in enumerate(self.axes) if isinstance(size, str)}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs, and output names in the graph's order."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]

    @property
    def cached(self) -> bool:
        """Whether the graph takes a past of keys and values."""
        return any(given.name.startswith(PAST) for given in self.inputs)

    def sample(self, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """Seeded values for a trace. The mask holds a zero: a mask of ones can vanish from a trace."""
        generator = torch.Generator().manual_seed(seed)
        return {given.name: _sample(given, generator) for given in self.inputs}


def _sample(given: GraphInput, generator: torch.Generator) -> torch.Tensor:
    shape = [_SAMPLE_SIZES[size] if isinstance(size, str) else size for size in given.axes]
    if given.default is not None:
        return torch.tensor(given.default + 2, dtype=given.dtype)
    if given.name in ("attention_mask", ENCODER_MASK):
        mask = torch.ones(shape, dtype=given.dtype)
        mask[-1, -2:] = 0
        return mask
    if given.name == "token_type_ids":
        return torch.zeros(shape, dtype=given.dtype)
    if given.name == "bbox":
        return torch.tensor([5, 6, 17, 18], dtype=given.dtype).expand(shape).contiguous()
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
    inputs = [GraphInput(name=name, dtype=torch.int64, axes=axes) for name in names]
    if "bbox" in accepted:  # of layout models: x0, y0, x1, y1 of every token on a page of 1000 x 1000
        inputs.append(GraphInput(name="bbox", dtype=torch.int64, axes=(*axes, 4)))
    return inputs


def _image_inputs(model: PreTrainedModel, processor: Mapping[str, Any]) -> list[GraphInput]:
    config = getattr(model.config, "vision_config", None) or model.config
    channels = int(getattr(config, "num_channels", 3) or 3)
    if config.model_type in ANY_IMAGE_SIZE and not getattr(config, "tf_padding", False):
        axes: tuple[int | str, ...] = (BATCH, channels, "height", "width")
        return [GraphInput(name="pixel_values", dtype=torch.float32, axes=axes)]
    size = image_size(model, config, channels, processor)
    return [GraphInput(name="pixel_values", dtype=torch.float32, axes=(BATCH, channels, *size))]


def _audio_inputs(
    model: PreTrainedModel, main: str, processor: Mapping[str, Any], accepted: Sequence[str]
) -> list[GraphInput]:
    """Whisper's and AST's spectrograms of one length, or waveforms and features of any, perhaps with a mask
    of samples or frames.

    Waveform models with group normalization are trained without a mask; their processors say so.
    """
    config = model.config
    axes = _audio_axes(config, main)
    if axes is None:
        return []
    inputs = [GraphInput(name=main, dtype=torch.float32, axes=axes)]
    normed = getattr(config, "feat_extract_norm", "layer") == "layer"
    masked = "attention_mask" in accepted and processor.get("return_attention_mask", normed)
    if isinstance(axes[1], str) and masked:
        inputs.append(GraphInput(name="attention_mask", dtype=torch.int64, axes=axes[:2]))
    return inputs


def _audio_axes(config: PretrainedConfig, main: str) -> tuple[int | str, ...] | None:
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if main == "input_features" and bins and frames:
        return BATCH, bins, 2 * frames
    if main == "input_features":
        width = _feature_width(config)
        return (BATCH, "num_frames", width) if width else None
    if main == "input_values" and bins and getattr(config, "max_length", None):
        return BATCH, config.max_length, bins
    if main == "input_values" and (hasattr(config, "conv_stride") or config.model_type in WAVEFORMS):
        return BATCH, "num_samples"
    return None


def _feature_width(config: PretrainedConfig) -> int | None:
    """Features of a frame: Speech2Text's filter banks, Wav2Vec2-BERT's pairs of frames."""
    banks = getattr(config, "input_feat_per_channel", None)
    if banks:
        return int(banks) * int(getattr(config, "input_channels", 1))
    return getattr(config, "feature_projection_input_dim", None)


def graph_inputs(model: PreTrainedModel, processor: Mapping[str, Any]) -> tuple[GraphInput, ...]:
    """The inputs of `model`, told from its forward method, its config and its preprocessor's config.

    Raises:
        InputError: a model of another modality, or one that needs further inputs.
    """
    parameters = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))  # FSMT's encoder is a plain module
    required = [name for name, parameter in parameters.items() if name == _SHAPES
                or (parameter.default is inspect.Parameter.empty
                    and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    alone = set(required) <= {main, "attention_mask", "token_type_ids", "bbox"}
    inputs = _inputs_of(model, main, processor, list(parameters)) if alone else []
    if not inputs:
        taken = ", ".join(dict.fromkeys([main, *required]))
        said = "only encoders of text, images or audio alone are exported"
        if alone and main in _AUDIO:
            said = (
                "onnxkit knows the waveforms of wav2vec 2.0 and Moonshine, and the features of Whisper, AST, "
                "Speech2Text and Wav2Vec2-BERT only"
            )
        raise InputError(f"{type(model).__name__} takes {taken}: {said}")
    return tuple(inputs)


def _inputs_of(
    model: PreTrainedModel, main: str, processor: Mapping[str, Any], accepted: Sequence[str]
) -> list[GraphInput]:
    """The inputs, told from the main one; none for another modality."""
    if main == "input_ids":
        return _text_inputs(model, accepted)
    if main == "pixel_values" and "pixel_values" in accepted and "input_ids" not in accepted:
        return _image_inputs(model, processor)
    return _audio_inputs(model, main, processor, accepted)
