"""Finds the graphs in a directory that another tool wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from onnxkit.artifact.companions import is_weights
from onnxkit.errors import InputError
from onnxkit.safety import check_directory, path_kind, printable

# Where optimum, transformers.exporters, sentence-transformers and transformers.js put it.
_USUAL = ("model.onnx", "onnx/model.onnx")
# optimum's names, which onnxkit's own encoder-decoders share: file → component.
_PARTS = {
    "encoder_model.onnx": "encoder",
    "decoder_model.onnx": "decoder",
    "decoder_with_past_model.onnx": "decoder_with_past",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(path: Path) -> tuple[Path, Mapping[str, str]]:
    """Return the directory of the model at `path` and its ONNX files by component, relative to it.

    `path` is a directory or an `.onnx` file. In a directory, `model.onnx` comes first, then
    `onnx/model.onnx`, then an encoder-decoder's `encoder_model.onnx`, `decoder_model.onnx` and, where it
    is, `decoder_with_past_model.onnx`, there or in `onnx/`, then the only `*.onnx` there or in `onnx/`. A
    single graph is called "model". A file in a directory `onnx` without a config belongs to the
    directory above.

    Raises:
        InputError: nothing there, no ONNX file, or several of them; it says what to do.
        UnsafeError: a link in the directory leads out of it.
    """
    kind = path_kind(path)
    if kind in ("file", "other"):
        root, file = _of_file(path)
        return root, {"model": file}
    if kind == "missing":
        raise InputError(_missing(path))
    check_directory(path)
    for name in _USUAL:
        if (path / name).is_file():
            return path, {"model": name}
    for folder in ("", "onnx/"):
        parts = {part: folder + name for name, part in _PARTS.items() if (path / folder / name).is_file()}
        if {"encoder", "decoder"} <= parts.keys():
            return path, parts
    found = sorted(p.relative_to(path).as_posix() for p in (*path.glob("*.onnx"), *path.glob("onnx/*.onnx")))
    if len(found) == 1:
        return path, {"model": found[0]}
    raise InputError(_several(path, found) if found else _none(path))


def _of_file(path: Path) -> tuple[Path, str]:
    if path.suffix.lower() != ".onnx":
        raise InputError(f"{_shown(path)} is neither a model directory nor an .onnx file")
    parent = path.parent
    above = parent.parent
    if parent.name == "onnx" and not (parent / "config.json").exists() and (above / "config.json").exists():
        return above, f"onnx/{path.name}"
    return parent, path.name


def _missing(path: Path) -> str:
    line = f"{_shown(path)}: no such file or directory"
    if _HUB_ID.fullmatch(str(path)):
        line += f"; for the model of that name on the Hub, run `onnxkit export {path} OUT` first"
    return line


def _several(path: Path, found: list[str]) -> str:
    names = ", ".join(printable(name, limit=80) for name in found[:8])
    return (
        f"{_shown(path)} holds {len(found)} ONNX files and no model.onnx ({names}); name one of them instead"
    )


def _none(path: Path) -> str:
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    if "config.json" in names or any(is_weights(name) for name in names):
        way = f"run `onnxkit export {_shown(path)} OUT` first"
        return f"{_shown(path)} is a checkpoint without an ONNX file; {way}"
    return f"{_shown(path)} holds no ONNX file" + ("" if names else ": there are no files in it")


def _shown(path: Path) -> str:
    return printable(str(path), limit=300)
