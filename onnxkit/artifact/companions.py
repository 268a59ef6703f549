"""Which files stand beside a graph and travel with it: configs, tokenizer, processor, modules."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator
from pathlib import Path

from onnxkit.artifact.manifest import MANIFEST_NAME
from onnxkit.errors import OnnxkitError
from onnxkit.safety import contained, read_modules

REFERENCE_NAME = "reference.npz"

# By name, because a model directory may hold anything beside: weights, data sets, logs of training.
_TRAVEL = (
    "*.json", "*.jinja", "*.tiktoken", "*.model", "*.spm", "*.vocab", "*.codes", "*.bpe", "vocab*.txt",
    "merges*.txt", "dict.txt", "README.md", "LICENSE*", "NOTICE*", REFERENCE_NAME,
)  # fmt: skip
_STAY = (
    MANIFEST_NAME, "*.index.json", "trainer_state.json", "*_results.json", "calib*", "eval*", "test*",
    "train*", "dataset*", "optimizer*", "ort_config.json", "quantize_config.json", "export.json",
    "metrics.json",
)  # fmt: skip
_WEIGHTS = ("*.onnx", "*.data", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")
_TEMPLATES = ("chat_templates", "additional_chat_templates")


def companion_files(directory: Path) -> tuple[str, ...]:
    """Return the names of the files that travel with a model, sorted, relative to `directory`.

    They are found by name: configuration, tokenizer, processor, chat templates, model card and
    licence, `reference.npz`, and the module directories that a sentence-transformers
    `modules.json` lists (`1_Pooling`). The weights of such a module (`2_Dense/model.safetensors`) travel too:
    they are no part of the transformer. Hidden files, other weights and data sets stay.
    """
    own = (entry.name for entry in directory.iterdir() if entry.is_file() and travels(entry.name))
    return tuple(sorted({*own, *_module_files(directory), *_template_files(directory)}))


def travels(name: str) -> bool:
    """Say whether a file of this bare name is copied along by every stage."""
    lowered = name.lower()
    if name.startswith(".") or any(fnmatch.fnmatchcase(lowered, pattern) for pattern in _STAY):
        return False
    return any(fnmatch.fnmatchcase(lowered, pattern.lower()) for pattern in _TRAVEL)


def is_weights(name: str) -> bool:
    """Say whether a file of this name holds weights."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _WEIGHTS)


def copy_files(directory: Path, names: tuple[str, ...], staging: Path) -> None:
    """Copy the files `names` of `directory` into `staging`; links are copied as the files they lead to."""
    for name in names:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(contained(directory, name), target)


def _module_files(directory: Path) -> Iterator[str]:
    """Yield the files of sentence-transformers modules that have a directory of their own."""
    for module in _modules(directory):
        folder = directory / module
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_file() and (travels(entry.name) or entry.suffix == ".safetensors"):
                yield f"{module}/{entry.name}"


def _modules(directory: Path) -> list[str]:
    if not (directory / "modules.json").is_file():
        return []
    try:
        modules = read_modules(directory / "modules.json")
    except OnnxkitError:
        # A modules.json that export would refuse is copied as any file is, and nothing is read from it.
        return []
    return [module.path for module in modules if module.path and module.kind != "Transformer"]


def _template_files(directory: Path) -> Iterator[str]:
    for folder in _TEMPLATES:
        for entry in sorted((directory / folder).glob("*.jinja")):
            yield f"{folder}/{entry.name}"
