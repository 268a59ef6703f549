"""`export.json`: what transformers' own loader (`exporters.ExportedModel`) reads beside the graph."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import modeling_outputs
from transformers.exporters.base import EXPORT_MANIFEST_FILE, EXPORT_SCHEMA_VERSION
from transformers.exporters.metadata import ExportMetadata

from onnxkit.export.parts import Part
from onnxkit.export.plan import Plan

_OUTPUT_CLASSES: Mapping[str, str] = {
    "feature-extraction": "BaseModelOutput",
    "text-classification": "SequenceClassifierOutput",
    "token-classification": "TokenClassifierOutput",
    "question-answering": "QuestionAnsweringModelOutput",
    "fill-mask": "MaskedLMOutput",
    "image-classification": "ImageClassifierOutput",
    "audio-classification": "SequenceClassifierOutput",
    "image-feature-extraction": "BaseModelOutputWithPooling",
}
"""Task → the class that the loader returns; a task without one gets a plain dict."""


def write_export_json(staging: Path, plan: Plan, part: Part, *, dtype: torch.dtype) -> None:
    """Write the manifest of transformers' exporters for a model of one graph.

    Its loader insists on a weights file beside the graph: an empty one is made where weights lie inside.

    Args:
        staging: the directory that holds the graph.
        dtype: of the weights.
    """
    graph_file = part.file
    metadata = ExportMetadata(
        architecture=plan.model_class,
        export_dtype=_name(dtype),
        export_device="cpu",
        kwargs={name: _described(value) for name, value in part.signature.sample().items()},
        out_spec=_output_spec(plan.task, part.signature.outputs),
    )
    manifest = {
        "schema_version": EXPORT_SCHEMA_VERSION,
        "export_format": "onnx",
        "components": {"model": {"file": graph_file, "metadata": dataclasses.asdict(metadata)}},
    }
    (staging / f"{graph_file}.data").touch()
    (staging / EXPORT_MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _described(value: torch.Tensor) -> dict[str, Any]:
    return {"rank": value.dim(), "shape": list(value.shape), "dtype": _name(value.dtype)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _output_spec(task: str, outputs: tuple[str, ...]) -> str:
    """Torch's text form of the structure that the graph's flat outputs are put back into."""
    tensors: dict[str, Any] = {name: torch.empty(0) for name in outputs}
    name = _OUTPUT_CLASSES.get(task)
    structure = getattr(modeling_outputs, name)(**tensors) if name is not None else tensors
    _, spec = torch.utils._pytree.tree_flatten(structure)
    text: str = torch.utils._pytree.treespec_dumps(spec)
    return text
