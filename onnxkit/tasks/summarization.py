"""Summarization: a long text to a short one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxkit.tasks.languages import Languages
from onnxkit.tasks.text2text_generation import Text2TextGeneration

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class Summarization(Text2TextGeneration):
    """Records as of `Text2TextGeneration`; prefix and lengths as config.json's task_specific_params say."""

    name = "summarization"

    def __init__(
        self,
        model: ModelDir,
        *,
        stop: Sequence[str] = (),
        stop_token: Sequence[str] = (),
        prefix: str | None = None,
    ) -> None:
        super().__init__(model, stop=stop, stop_token=stop_token, prefix=prefix)
        if self._prefix is None:
            self._prefix = self._parameters.prefix("summarization")

    def choose_parameters(self, told: Languages) -> Mapping[str, Any]:
        """Return what is said for "summarization"."""
        return self._parameters.get("summarization")
