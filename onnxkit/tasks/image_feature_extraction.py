"""Image features: one vector for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxkit.errors import UsageError
from onnxkit.tasks.base import Array, Encoded, Record
from onnxkit.tasks.image import ImageTask
from onnxkit.tasks.numerics import unit_length

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

POOLINGS = ("cls", "mean", "none")


class ImageFeatureExtraction(ImageTask):
    """Records: `embedding`, a vector; with pooling "none" `embeddings`, a vector a patch.

    The vector is the output `image_embeds` or `pooler_output` where the model has one. Otherwise
    `last_hidden_state` is pooled: its first token ("cls"), or the mean of all; a convolution's
    [channels, height, width] always by its mean.
    """

    name = "image-feature-extraction"
    outputs: tuple[tuple[str, ...], ...] = (("image_embeds", "pooler_output", "last_hidden_state"),)

    def __init__(self, model: ModelDir, *, pooling: str | None = None, normalize: bool | None = None) -> None:
        if pooling not in (None, *POOLINGS):
            raise UsageError(f"no pooling {pooling!r}; choose one of {', '.join(POOLINGS)}")
        if pooling:
            self.outputs = (("last_hidden_state",),)
        super().__init__(model)
        self._pooling = pooling or "cls"
        self._normalize = bool(normalize)

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn [rows, width] vectors or [rows, patches, width] features into records."""
        output = outputs[self.fetched[0]]
        if output.ndim == 4:
            output = output.reshape(*output.shape[:2], -1).swapaxes(1, 2)
            output = output if self._pooling == "none" else output.mean(axis=1)
        elif output.ndim == 3 and self._pooling != "none":
            output = output[:, 0] if self._pooling == "cls" else output.mean(axis=1)
        vectors = unit_length(output) if self._normalize else output
        key = "embeddings" if vectors.ndim == 3 else "embedding"
        return [{key: vector.tolist()} for vector in vectors]
