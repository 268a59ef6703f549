"""Images to pixel values, bit for bit what transformers' PIL processors compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from onnxkit.errors import InputError
from onnxkit.tasks.base import Array
from onnxkit.tasks.image_settings import ImageSettings, Size

_CONVNEXT_WARP = 384
"""ConvNext resizes without a crop from this edge on."""
_LEVIT_RATIO = 256 / 224


class ImageProcessor:
    """Resize, center crop, rescale, normalize, as the settings say.

    Rescaling and normalizing map each of 256 values of a channel to one float, so they are a table
    look-up: the same arithmetic as transformers', done once for each value.
    """

    def __init__(self, settings: ImageSettings, channels: int) -> None:
        self.settings = settings
        self.channels = channels
        self._table = value_table(settings, channels)

    def __call__(self, image: Image.Image) -> Array:
        """Return pixel values [channels, height, width]: float32, or uint8 where nothing scales them."""
        settings = self.settings
        image = to_channels(image, self.channels, composite=settings.do_convert_rgb)
        if settings.resize_rule == "DINOv3ViT":
            return self._resized_as_floats(image)
        if settings.do_resize:
            image = resize(image, settings)
        pixels = self._cropped(image)
        values = np.stack([self._table[channel][pixels[:, :, channel]] for channel in range(self.channels)])
        if settings.do_flip_channel_order:
            values = values[::-1]
        return (
            pad_bottom_right(values, settings.pad_size) if settings.do_pad and settings.pad_size else values
        )

    def _resized_as_floats(self, image: Image.Image) -> Array:
        """DINOv3 rescales first and rounds nothing: [channels, height, width] float32."""
        settings = self.settings
        factor = settings.rescale_factor if settings.do_rescale else 1.0
        values = []
        for band in image.split():
            plane = Image.fromarray(np.asarray(band, dtype=np.float32) * np.float32(factor))
            values.append(self._cropped(resize(plane, settings) if settings.do_resize else plane)[:, :, 0])
        planes = np.stack(values)
        if not settings.do_normalize:
            return planes
        flat = _normalize(planes.reshape(len(planes), -1), settings.image_mean, settings.image_std)
        return flat.reshape(planes.shape)

    def _cropped(self, image: Image.Image) -> Array:
        """Pixels [height, width, channels]."""
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        wanted = self.settings.crop_size
        return center_crop(pixels, wanted) if self.settings.do_center_crop and wanted is not None else pixels


def value_table(settings: ImageSettings, channels: int) -> Array:
    """Return what each pixel value becomes, [channels, 256]."""
    values: Array = np.tile(np.arange(256, dtype=np.uint8), (channels, 1))
    if settings.do_rescale:
        values = (values.astype(np.float64) * settings.rescale_factor).astype(np.float32)
        if settings.rescale_offset:
            values = values - np.float32(1)
    if settings.do_normalize:
        values = _normalize(values, settings.image_mean, settings.image_std)
    if settings.divide_again:
        values = _normalize(values, 0.0, settings.image_std)
    return values


def _normalize(values: Array, mean: tuple[float, ...] | float, std: tuple[float, ...] | float) -> Array:
    values = values.astype(np.float32)
    return (values - _column(mean, len(values))) / _column(std, len(values))


def _column(value: tuple[float, ...] | float, channels: int) -> Array:
    values = np.atleast_1d(np.asarray(value, dtype=np.float32))
    if len(values) not in (1, channels):
        raise InputError(f"the image settings have {len(values)} means or deviations for {channels} channels")
    return np.broadcast_to(values, (channels,))[:, None]


def to_channels(image: Image.Image, channels: int, *, composite: bool) -> Image.Image:
    """Convert to "L" (1 channel) or "RGB" (3).

    With `composite`, transparent pixels become white, as transformers' `do_convert_rgb` has it;
    without, alpha is dropped, as its pipelines do when they open a file.
    """
    if channels == 1:
        return image.convert("L")
    if composite and ("A" in image.getbands() or image.info.get("transparency") is not None):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resize(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Resize by the processor's rule, with PIL's filter."""
    height, width = target_size(image.height, image.width, settings)
    resized = image.resize((width, height), resample=Image.Resampling(settings.resample))
    edge = settings.size.get("shortest_edge", 0)
    if settings.resize_rule == "ConvNext" and edge < _CONVNEXT_WARP:
        pixels = np.asarray(resized)
        cropped = center_crop(
            pixels[:, :, None] if pixels.ndim == 2 else pixels, {"height": edge, "width": edge}
        )
        return Image.fromarray(cropped[:, :, 0] if pixels.ndim == 2 else cropped)
    return resized


def target_size(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to, in pixels.

    Raises:
        InputError: the settings' size has none of the known forms.
    """
    size, rule = settings.size, settings.resize_rule
    edge = size.get("shortest_edge")
    if rule == "ConvNext" and edge:
        small = edge < _CONVNEXT_WARP
        return _shortest_edge(height, width, int(edge / (settings.crop_pct or 1))) if small else (edge, edge)
    if rule == "Levit" and edge:
        return _shortest_edge(height, width, int(_LEVIT_RATIO * edge))
    if rule == "PoolFormer" and settings.crop_pct:
        return _pool_former(height, width, size, settings.crop_pct)
    if edge and size.get("longest_edge"):
        return _between(height, width, edge, size["longest_edge"])
    if edge:
        return _shortest_edge(height, width, edge)
    if size.get("max_height") and size.get("max_width"):
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    if size.get("height") and size.get("width") and rule != "ConvNext":
        return size["height"], size["width"]
    raise InputError(f"the image settings' size {dict(size)} has no known form")


def output_size(settings: ImageSettings) -> tuple[int, int] | None:
    """Return the (height, width) of every image's pixel values; None where they follow from the image's."""
    size, edge = settings.size, settings.size.get("shortest_edge")
    if settings.do_pad and settings.pad_size:
        return settings.pad_size["height"], settings.pad_size["width"]
    if settings.do_center_crop and settings.crop_size is not None:
        return settings.crop_size["height"], settings.crop_size["width"]
    if not settings.do_resize:
        return None
    if settings.resize_rule == "ConvNext" and edge:
        return edge, edge
    known = settings.resize_rule != "PoolFormer" and not edge and size.get("height") and size.get("width")
    return (size["height"], size["width"]) if known else None


def center_crop(pixels: Array, size: Size) -> Array:
    """Cut [height, width, channels] to `size` around the middle; what lies outside is 0."""
    height, width = pixels.shape[:2]
    crop_height, crop_width = size["height"], size["width"]
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    if top < 0 or left < 0:
        full = (max(crop_height, height), max(crop_width, width))
        padded = np.zeros((*full, pixels.shape[2]), dtype=pixels.dtype)
        above, before = math.ceil((full[0] - height) / 2), math.ceil((full[1] - width) / 2)
        padded[above : above + height, before : before + width] = pixels
        pixels, top, left = padded, top + above, left + before
    return pixels[max(top, 0) : top + crop_height, max(left, 0) : left + crop_width]


def pad_bottom_right(values: Array, size: Size) -> Array:
    """Pad [channels, height, width] with 0 to `size`.

    Raises:
        InputError: the image is larger.
    """
    below, after = size["height"] - values.shape[1], size["width"] - values.shape[2]
    if below < 0 or after < 0:
        raise InputError(
            f"an image of {values.shape[2]}x{values.shape[1]} pixels is larger than pad_size {dict(size)}"
        )
    padded: Array = np.pad(values, ((0, 0), (0, below), (0, after)))
    return padded


def _shortest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _between(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Resize the short side to `shortest` unless the long one would exceed `longest` (DETR's rule)."""
    short, long = sorted((height, width))
    edge, exact = shortest, float(shortest)
    if long / short * shortest > longest:
        exact = longest * short / long
        edge = round(exact)
    if short == edge:
        return height, width
    if width < height:
        return int(exact * height / width), edge
    return edge, int(exact * width / height)


def _pool_former(height: int, width: int, size: Size, share: float) -> tuple[int, int]:
    if size.get("shortest_edge"):
        return _shortest_edge(height, width, int(size["shortest_edge"] / share))
    if size["height"] == size["width"]:
        return _shortest_edge(height, width, int(size["height"] / share))
    return int(size["height"] / share), int(size["width"] / share)


def as_image(value: Any) -> Image.Image | None:
    """Return a PIL image for an image or a uint8 array [h, w], [h, w, 1|3|4] or [1|3, h, w]; else None."""
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (2, 3):
        return None
    if value.ndim == 3 and value.shape[-1] not in (1, 3, 4) and value.shape[0] in (1, 3):
        value = np.moveaxis(value, 0, -1)
    if value.ndim == 3 and value.shape[-1] == 1:
        value = value[:, :, 0]
    if value.ndim == 3 and value.shape[-1] not in (3, 4):
        return None
    return Image.fromarray(np.ascontiguousarray(value))
