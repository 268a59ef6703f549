"""What preprocessor_config.json asks for, with the defaults of transformers' image processors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.errors import InputError
from onnxkit.tasks.processor_files import required_settings

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

Size = Mapping[str, int]

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_BILINEAR, _BICUBIC = 2, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """One image processor's settings; names are transformers'.

    Attributes:
        size: {"height", "width"}, {"shortest_edge"[, "longest_edge"]} or {"max_height", "max_width"}, pixels.
        resample: PIL's number of the filter.
        crop_size: {"height", "width"}, pixels.
        rescale_factor: what pixel values (0 to 255) are multiplied with.
        rescale_offset: 1 is subtracted after it (EfficientNet).
        image_mean, image_std: one a channel, or one for all.
        pad_size: {"height", "width"}; None pads to the largest of a batch.
        crop_pct: share of the resized image that the crop keeps (ConvNext, PoolFormer).
        divide_again: divide by `image_std` once more (EfficientNet's `include_top`).
        resize_rule: "plain", or the name of a processor that resizes in its own way.
    """

    do_resize: bool = True
    size: Size = dataclasses.field(default_factory=lambda: {"height": 224, "width": 224})
    resample: int = _BILINEAR
    do_center_crop: bool = False
    crop_size: Size | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    rescale_offset: bool = False
    do_normalize: bool = True
    image_mean: tuple[float, ...] | float = _HALF
    image_std: tuple[float, ...] | float = _HALF
    do_pad: bool = False
    pad_size: Size | None = None
    do_convert_rgb: bool = False
    do_flip_channel_order: bool = False
    crop_pct: float | None = None
    divide_again: bool = False
    resize_rule: str = "plain"


def _shortest(edge: int, **more: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "square": False, "resample": _BICUBIC, **more}


def _square(edge: int, **more: Any) -> dict[str, Any]:
    return {"size": {"height": edge, "width": edge}, **more}


def _cropped(edge: int) -> dict[str, Any]:
    return {"do_center_crop": True, "crop_size": {"height": edge, "width": edge}}


def _norm(values: tuple[tuple[float, ...], tuple[float, ...]]) -> dict[str, Any]:
    return {"image_mean": values[0], "image_std": values[1]}


_CLIP = _shortest(224, **_cropped(224), **_norm(_OPENAI), do_convert_rgb=True)
_MOBILENET = _shortest(256, **_cropped(224)) | {"resample": _BILINEAR}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": _square(224),
    "DeiT": _square(256, resample=_BICUBIC, **_cropped(224)),
    "DINOv3ViT": _square(224, **_norm(_IMAGENET), resize_rule="DINOv3ViT"),
    "Beit": _square(224, resample=_BICUBIC, crop_size={"height": 224, "width": 224}),
    "Pvt": _square(224, resample=_BICUBIC, **_norm(_IMAGENET)),
    "Segformer": _square(512, **_norm(_IMAGENET)),
    "Siglip": _square(224, resample=_BICUBIC, do_convert_rgb=True, square=False),
    "Blip": _square(384, resample=_BICUBIC, **_norm(_OPENAI), do_convert_rgb=True),
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Bit": _CLIP,
    "ConvNext": _shortest(384, crop_pct=224 / 256, resize_rule="ConvNext"),
    "Levit": _shortest(224, **_cropped(224), **_norm(_IMAGENET), resize_rule="Levit"),
    "PoolFormer": _shortest(224, **_cropped(224), **_norm(_IMAGENET), crop_pct=0.9, resize_rule="PoolFormer"),
    "MobileNetV1": _MOBILENET,
    "MobileNetV2": _MOBILENET,
    "MobileViT": _shortest(224, **_cropped(256), do_flip_channel_order=True, ignores=("do_normalize",)),
    "EfficientNet": _square(
        346, resample=_BICUBIC, crop_size={"height": 289, "width": 289}, divide_again=True
    ),
}
"""Defaults by `image_processor_type` (without "ImageProcessor"), checked against transformers 5.23."""


def load_settings(model: ModelDir) -> ImageSettings:
    """Read preprocessor_config.json (or the image part of processor_config.json) of `model.path`.

    Raises:
        InputError: there is none, or its processor is one that onnxkit does not have.
    """
    return parse_settings(*required_settings(model.path, "image_processor"))


def parse_settings(config: Mapping[str, Any], path: Path) -> ImageSettings:
    """Turn the JSON of an image processor into settings.

    Raises:
        InputError: an unknown processor, or values of the wrong form; names `path`.
    """
    kind = _kind(config, path)
    defaults = dict(DEFAULTS[kind])
    square, ignores = defaults.pop("square", True), defaults.pop("ignores", ())
    merged = {**defaults, **config}
    fields = {field.name for field in dataclasses.fields(ImageSettings)}
    chosen = {key: merged[key] for key in fields if merged.get(key) is not None and key not in ignores}
    chosen.update(dict.fromkeys(ignores, False))
    chosen.update({key: False for key in fields if key.startswith("do_") and merged.get(key, 0) is None})
    if kind == "EfficientNet":
        chosen["divide_again"] = bool(config.get("include_top", True))
    if config.get("use_square_size") and kind == "CLIP":
        square, chosen["size"] = True, 224
    try:
        for name in ("size", "crop_size", "pad_size"):
            if name in chosen:
                chosen[name] = _size(chosen[name], square=square or name != "size")
        for name in ("image_mean", "image_std"):
            if name in chosen:
                chosen[name] = _per_channel(chosen[name])
        return ImageSettings(**chosen)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not usable image settings: {error}") from error


def _kind(config: Mapping[str, Any], path: Path) -> str:
    written = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    kind = written
    for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(suffix)
    if kind not in DEFAULTS:
        raise InputError(
            f"{path}: the image processor {written} is none that onnxkit has ({', '.join(DEFAULTS)}); "
            "pass pixel_values as raw tensors (.npz) instead"
        )
    return kind


def _size(value: Any, *, square: bool) -> dict[str, int]:
    if isinstance(value, dict):
        return {str(key): int(edge) for key, edge in value.items() if edge is not None}
    if isinstance(value, list | tuple):
        height, width = value
        return {"height": int(height), "width": int(width)}
    return {"height": int(value), "width": int(value)} if square else {"shortest_edge": int(value)}


def _per_channel(value: Any) -> tuple[float, ...] | float:
    return tuple(float(one) for one in value) if isinstance(value, list | tuple) else float(value)
