"""Feature extraction: one vector for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxkit.errors import UsageError
from onnxkit.safety import read_json, read_json_value
from onnxkit.tasks.base import Array, Encoded, Record
from onnxkit.tasks.numerics import unit_length
from onnxkit.tasks.text import TextTask, own_tokens

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

POOLINGS = ("mean", "cls", "max", "last", "none")


class FeatureExtraction(TextTask):
    """Records: `embedding`, a vector; with pooling "none" `embeddings`, a vector a token.

    A model with the output `sentence_embedding` pools itself, and that is the vector. Otherwise
    the token vectors are pooled here: as 1_Pooling/config.json says where the directory is one of
    sentence-transformers, else by their mean. Padding never takes part.
    """

    name = "feature-extraction"
    outputs: tuple[tuple[str, ...], ...] = (
        ("sentence_embedding", "last_hidden_state", "token_embeddings", "text_embeds"),
    )

    def __init__(
        self,
        model: ModelDir,
        *,
        max_length: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        if pooling not in (None, *POOLINGS):
            raise UsageError(f"no pooling {pooling!r}; choose one of {', '.join(POOLINGS)}")
        if pooling:
            self.outputs = (("last_hidden_state", "token_embeddings"),)
        super().__init__(model, max_length=max_length)
        pooled = self.fetched[0] in ("sentence_embedding", "text_embeds")
        self._pooling = "inside" if pooled else pooling or directory_pooling(model.path)
        wanted = not pooled and pooling is None and directory_normalizes(model.path)
        self._normalize = wanted if normalize is None else normalize

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn [rows, width] vectors, or [rows, tokens, width] token vectors, into records."""
        output = outputs[self.fetched[0]]
        if self._pooling == "inside":
            return [{"embedding": vector.tolist()} for vector in self._finish(output)]
        tokens = own_tokens(output, rows, self.setup.padding_side)
        if self._pooling == "none":
            return [{"embeddings": self._finish(one).tolist()} for one in tokens]
        pooled = np.stack([pool(one, self._pooling) for one in tokens])
        return [{"embedding": vector.tolist()} for vector in self._finish(pooled)]

    def _finish(self, vectors: Array) -> Array:
        return unit_length(vectors) if self._normalize else vectors


def pool(tokens: Array, how: str) -> Array:
    """Make one vector of token vectors [tokens, width]."""
    if how == "cls":
        chosen: Array = tokens[0]
    elif how == "last":
        chosen = tokens[-1]
    elif how == "max":
        chosen = tokens.max(axis=0)
    else:
        chosen = tokens.mean(axis=0)
    return chosen


def directory_pooling(folder: Path) -> str:
    """Return the pooling that 1_Pooling/config.json names, "mean" where there is none."""
    path = folder / "1_Pooling" / "config.json"
    settings = read_json(path) if path.exists() else {}
    names = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_lasttoken": "last",
    }
    return next((how for key, how in names.items() if settings.get(key) is True), "mean")


def directory_normalizes(folder: Path) -> bool:
    """Return whether modules.json ends with sentence-transformers' Normalize."""
    path = folder / "modules.json"
    modules: Any = read_json_value(path) if path.exists() else []
    kinds = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    return any(kind.endswith(".Normalize") for kind in kinds)
