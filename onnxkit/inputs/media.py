"""Images and audio by path: one file, or a folder (whose subfolders are the labels)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from onnxkit.errors import InputError
from onnxkit.inputs.lines import Row

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_AUDIO = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
MEDIA_SUFFIXES: Mapping[str, str] = {**dict.fromkeys(_IMAGES, "image"), **dict.fromkeys(_AUDIO, "audio")}
"""Suffix in lower case -> the column that such a file fills."""


def read_image(path: Path, name: str) -> Iterator[Row]:
    """Yield the one sample of an image file. The pixels are read later, by the task."""
    yield name, {"image": path}


def read_audio(path: Path, name: str) -> Iterator[Row]:
    """Yield the one sample of an audio file. It is read later, by the task."""
    yield name, {"audio": path}


def read_folder(folder: Path, name: str) -> Iterator[Row]:
    """Yield the images and audio files below `folder` in the order of their names.

    A file in a subfolder has the subfolder's name as its `label`. Hidden files and links to folders
    are passed over.

    Raises:
        InputError: there is neither image nor audio, or a folder cannot be listed.
    """
    empty = True
    for directory, subfolders, files in os.walk(folder, onerror=_unlisted):
        subfolders[:] = sorted(entry for entry in subfolders if not entry.startswith("."))
        parent = Path(directory)
        label = {} if parent == folder else {"label": parent.name}
        for file in sorted(files):
            path = parent / file
            column = MEDIA_SUFFIXES.get(path.suffix.lower())
            if column and not file.startswith("."):
                empty = False
                yield str(Path(name) / path.relative_to(folder)), {column: path, **label}
    if empty:
        raise InputError(f"{name}: no image and no audio in the folder ({', '.join(sorted(MEDIA_SUFFIXES))})")


def _unlisted(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from error
