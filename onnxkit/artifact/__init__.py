"""What a model directory is: its manifest, how it is opened and described, and how one is published.

Names are imported on first use, so that a list of task names costs neither numpy nor onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxkit.artifact.companions import companion_files
    from onnxkit.artifact.digests import FileEntry
    from onnxkit.artifact.history import Invocation
    from onnxkit.artifact.intoto import to_in_toto
    from onnxkit.artifact.manifest import MANIFEST_NAME, Component, HistoryEntry, Manifest, Verification
    from onnxkit.artifact.model_dir import ModelDir
    from onnxkit.artifact.publishing import check_apart, check_file, check_target, publish, publish_file
    from onnxkit.artifact.reference import (
        ReferenceCase,
        ReferenceOutput,
        load_reference,
        sample_output,
        save_reference,
    )
    from onnxkit.artifact.sealing import copy_companions, seal
    from onnxkit.artifact.task_names import RAW, TASKS, normalize_task, task_of_architecture

_HOMES = {
    "MANIFEST_NAME": "manifest",
    "RAW": "task_names",
    "TASKS": "task_names",
    "Component": "manifest",
    "FileEntry": "digests",
    "HistoryEntry": "manifest",
    "Invocation": "history",
    "Manifest": "manifest",
    "ModelDir": "model_dir",
    "ReferenceCase": "reference",
    "ReferenceOutput": "reference",
    "Verification": "manifest",
    "check_apart": "publishing",
    "check_file": "publishing",
    "check_target": "publishing",
    "companion_files": "companions",
    "copy_companions": "sealing",
    "load_reference": "reference",
    "normalize_task": "task_names",
    "publish": "publishing",
    "publish_file": "publishing",
    "sample_output": "reference",
    "save_reference": "reference",
    "seal": "sealing",
    "task_of_architecture": "task_names",
    "to_in_toto": "intoto",
}

__all__ = [
    "MANIFEST_NAME",
    "RAW",
    "TASKS",
    "Component",
    "FileEntry",
    "HistoryEntry",
    "Invocation",
    "Manifest",
    "ModelDir",
    "ReferenceCase",
    "ReferenceOutput",
    "Verification",
    "check_apart",
    "check_file",
    "check_target",
    "companion_files",
    "copy_companions",
    "load_reference",
    "normalize_task",
    "publish",
    "publish_file",
    "sample_output",
    "save_reference",
    "seal",
    "task_of_architecture",
    "to_in_toto",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxkit.artifact' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxkit.artifact.{_HOMES[name]}"), name)
