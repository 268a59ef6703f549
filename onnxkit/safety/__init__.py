"""The one vetted reader of foreign files: one short module per kind of input.

Names are imported on first use, so that reading a JSON file imports neither onnx, numpy nor
Pillow. Every function raises `InputError` for a file that is missing, damaged or of the wrong
kind, and `UnsafeError` for one that would run code or leave its directory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxkit.safety.arrays import read_npy, read_npz
    from onnxkit.safety.audio import read_audio
    from onnxkit.safety.checkpoints import check_checkpoint
    from onnxkit.safety.images import open_image
    from onnxkit.safety.json_files import read_json, read_json_value
    from onnxkit.safety.modules import Module, read_modules
    from onnxkit.safety.onnx_files import external_files, read_model
    from onnxkit.safety.paths import check_directory, contained, path_kind, regular_file
    from onnxkit.safety.sentencepiece_files import read_sentencepiece
    from onnxkit.safety.text import printable
    from onnxkit.safety.text_files import read_text

_HOMES = {
    "Module": "modules",
    "check_checkpoint": "checkpoints",
    "check_directory": "paths",
    "contained": "paths",
    "external_files": "onnx_files",
    "open_image": "images",
    "path_kind": "paths",
    "printable": "text",
    "read_audio": "audio",
    "read_json": "json_files",
    "read_json_value": "json_files",
    "read_model": "onnx_files",
    "read_modules": "modules",
    "read_npy": "arrays",
    "read_npz": "arrays",
    "read_sentencepiece": "sentencepiece_files",
    "read_text": "text_files",
    "regular_file": "paths",
}

__all__ = [
    "Module",
    "check_checkpoint",
    "check_directory",
    "contained",
    "external_files",
    "open_image",
    "path_kind",
    "printable",
    "read_audio",
    "read_json",
    "read_json_value",
    "read_model",
    "read_modules",
    "read_npy",
    "read_npz",
    "read_sentencepiece",
    "read_text",
    "regular_file",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxkit.safety' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxkit.safety.{_HOMES[name]}"), name)
