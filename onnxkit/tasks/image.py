"""What all image tasks share: opening images, pixel values, batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from onnxkit.errors import InputError, OnnxkitError
from onnxkit.inputs import Sample, place
from onnxkit.safety import open_image
from onnxkit.tasks.base import Encoded, Feeds, Task, column_of
from onnxkit.tasks.image_processor import ImageProcessor, as_image
from onnxkit.tasks.image_settings import ImageSettings, load_settings

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class ImageTask(Task):
    """A task on images: paths, PIL images or uint8 arrays in the column `image`."""

    noun = "images"
    columns = ("image",)
    window = 32

    def __init__(self, model: ModelDir) -> None:
        super().__init__(model)
        self._check_inputs(("pixel_values",))
        settings = load_settings(model)
        self.processor = ImageProcessor(settings, self._channels(settings))

    def encode(self, sample: Sample) -> Encoded:
        """Open and pre-process an image: pixel_values [channels, height, width]."""
        where = place(sample)
        image = self._open(sample, where)
        try:
            pixels = self.processor(image)
        except OnnxkitError as error:
            raise type(error)(f"{where}: {error}") from error
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises while it decodes lazily
            raise InputError(f"{where}: the image cannot be decoded: {error}") from error
        length = pixels.shape[1] * pixels.shape[2]
        return Encoded(
            features={"pixel_values": pixels}, length=length, caution=_clipped(image, where), where=where
        )

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Stack images; smaller ones are padded with 0 where the processor pads.

        Raises:
            InputError: images of several sizes, and no padding.
        """
        images = [row.features["pixel_values"] for row in rows]
        shapes = np.array([image.shape for image in images])
        if (shapes != shapes[0]).any():
            if not self.processor.settings.do_pad:
                raise InputError(
                    f"{rows[0].where}: images of {len({*map(tuple, shapes.tolist())})} sizes in one batch; "
                    "use a batch size of 1"
                )
            height, width = shapes[:, 1:].max(axis=0)
            images = [
                np.pad(one, ((0, 0), (0, height - one.shape[1]), (0, width - one.shape[2]))) for one in images
            ]
        return {
            "pixel_values": np.stack(images).astype(_dtype(self.inputs["pixel_values"].dtype), copy=False)
        }

    def sample_of(self, item: Any) -> Sample:
        """Take a path, a PIL image or an array as the image."""
        return item if isinstance(item, Mapping) else {"image": item}

    def _open(self, sample: Sample, where: str) -> Image.Image:
        value = column_of(sample, "image")
        if isinstance(value, str | Path):
            try:
                return open_image(Path(value))
            except OnnxkitError as error:
                raise error if str(value) in where else type(error)(f"{where}: {error}") from error
        image = as_image(value)
        if image is None:
            raise InputError(
                f"{where}: an image is a path, a PIL image or a uint8 array [height, width, channels]"
            )
        return image

    def _channels(self, settings: ImageSettings) -> int:
        stated = self.model.config.get("num_channels")
        shape = self.inputs["pixel_values"].shape
        axis = shape[1] if len(shape) == 4 else None
        means = settings.image_mean
        candidates = (axis, stated, len(means) if isinstance(means, tuple) else None)
        channels = next((one for one in candidates if isinstance(one, int) and one > 0), 3)
        if channels not in (1, 3):
            raise InputError(
                f"{self.model.path}: images of {channels} channels; pass raw tensors (.npz) instead"
            )
        return channels


def _clipped(image: Image.Image, where: str) -> str:
    """Say of an image of more than 8 bits that most of it turns white, as it does in transformers."""
    if not image.mode.startswith(("I", "F")):
        return ""
    brightest = np.asarray(image).max()  # Pillow's extrema know no big-endian pixels
    if not brightest > 255:
        return ""
    return f"{where}: pixels up to {brightest:g} count as 255 where they are above it; convert it to 8 bits"


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  (tells numpy the name)
    return np.dtype(name)
