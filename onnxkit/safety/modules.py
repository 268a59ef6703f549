"""`modules.json` of sentence-transformers: it names classes to import, so only known ones pass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.json_files import read_json_value
from onnxkit.safety.paths import contained
from onnxkit.safety.text import printable

# Classes of sentence-transformers 2 to 6. A class elsewhere is imported by its loader and runs
# (CVE-2026-68770); nothing is imported here.
_KNOWN = frozenset(
    {
        "Asym", "BoW", "CLIPModel", "CNN", "Dense", "Dropout", "LSTM", "LayerNorm", "MLMTransformer",
        "Normalize", "Pooling", "Router", "SparseAutoEncoder", "SparseStaticEmbedding", "SpladePooling",
        "StaticEmbedding", "Transformer", "WeightedLayerPooling", "WordEmbeddings", "WordWeights",
    }
)  # fmt: skip
_TYPE = re.compile(r"sentence_transformers(\.[a-z_0-9]+)*\.([A-Za-z]+)")


@dataclass(frozen=True, kw_only=True)
class Module:
    """One step of a sentence-transformers model.

    Attributes:
        kind: name of its class: "Transformer", "Pooling", "Normalize", "Dense", …
        path: its directory relative to the model's, "" for the model's own.
    """

    kind: str
    path: str


def read_modules(path: Path) -> tuple[Module, ...]:
    """Read `modules.json` and return its steps in their order; nothing is imported.

    Raises:
        InputError: missing, or not of that format.
        UnsafeError: a class from outside sentence-transformers, or a path that leaves the directory.
    """
    entries = read_json_value(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: expected a list of modules")
    return tuple(_module(entry, path) for entry in entries)


def _module(entry: dict[str, Any], path: Path) -> Module:
    name, folder = entry.get("type"), entry.get("path", "")
    if not isinstance(name, str) or not isinstance(folder, str):
        raise InputError(f"{path}: a module without a type or with a path that is no text")
    match = _TYPE.fullmatch(name)
    if match is None or match[2] not in _KNOWN:
        raise UnsafeError(
            f"{path}: refused the module class {printable(name, limit=120)}: only sentence-transformers' own"
        )
    if folder:
        contained(path.parent, folder)
    return Module(kind=match[2], path=folder.rstrip("/"))
