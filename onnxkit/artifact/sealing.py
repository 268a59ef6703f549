"""Closing a stage's output: companions copied, digests taken, the manifest written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxkit.artifact.companions import companion_files, copy_files
from onnxkit.artifact.digests import file_entry
from onnxkit.artifact.genai import CACHE_KEY, SHARED, fit_genai_config
from onnxkit.artifact.history import Invocation, history_entry
from onnxkit.artifact.manifest import MANIFEST_NAME, Component, HistoryEntry, Manifest, Verification
from onnxkit.artifact.model_dir import ModelDir
from onnxkit.artifact.specs import input_specs, output_specs
from onnxkit.artifact.task_names import normalize_task
from onnxkit.safety import contained, read_model


def copy_companions(source: ModelDir | Path, staging: Path) -> None:
    """Copy configuration, tokenizer, processor, modules and reference data of `source` into `staging`.

    `source` is a model or a checkpoint directory. Weights, hidden files, data sets and the manifest stay.
    """
    if isinstance(source, ModelDir):
        copy_files(source.path, source.companion_names(), staging)
    else:
        copy_files(source, companion_files(source), staging)


def seal(
    staging: Path,
    *,
    task: str,
    components: Mapping[str, str],
    invocation: Invocation,
    parent: ModelDir | None,
    verified: Verification | None,
    measured: Mapping[str, Any],
    input_digest: str = "",
    genai_config: bool = False,
) -> Manifest:
    """Write `onnxkit.json` over everything in `staging` and return what it says.

    Args:
        staging: the directory, complete but for the manifest.
        task: the task of the result.
        components: ONNX files by component name ({"model": "model.onnx"}); inputs and outputs are
            read from them.
        invocation: how the stage was called.
        parent: the model that it was made from; its history is continued and its digest recorded.
        verified: the check of this content, or None when there was none.
        measured: what the stage measured, plain values or dataclasses.
        input_digest: what it was made from where that is no ModelDir (a checkpoint's digest or commit).
        genai_config: write the configuration of onnxruntime-genai, too; one that is there is fitted anyway.

    Raises:
        InputError: a component is missing or damaged, or the parent no longer fits its manifest.
    """
    digest = parent.digest() if parent is not None else input_digest
    earlier = parent.manifest.history if parent is not None and parent.manifest is not None else ()
    entry = history_entry(invocation, input_digest=digest, measured=measured)
    cuda = _for_cuda((*earlier, entry))
    described = {
        name: _component(staging, file, cuda=cuda, genai_config=genai_config and name == "model")
        for name, file in components.items()
    }
    names = sorted(p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
    manifest = Manifest(
        task=normalize_task(task),
        components=described,
        files={name: file_entry(staging / name) for name in names if name != MANIFEST_NAME},
        verified=verified,
        history=(*earlier, entry),
    )
    (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _component(staging: Path, file: str, *, cuda: bool, genai_config: bool) -> Component:
    model = read_model(contained(staging, file))
    found = Component(file=file, inputs=input_specs(model), outputs=output_specs(model))
    shared = any(entry.key == CACHE_KEY and entry.value == SHARED for entry in model.metadata_props)
    fit_genai_config(staging, found, shared=shared, cuda=cuda, wanted=genai_config)
    return found


def _for_cuda(history: Sequence[HistoryEntry]) -> bool:
    """Whether the last stage that was told for what hardware to write was told CUDA."""
    options = (entry.options.get(name, {}) for entry in reversed(history) for name in ("ep", "target"))
    told = (str(option["value"]) for option in options if option.get("value") is not None)
    return next(told, "cpu").lower().startswith("cuda")
