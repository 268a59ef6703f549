"""Images by path: one file, or a folder (whose subfolders are the labels)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onnxkit.errors import InputError
from onnxkit.inputs.lines import Row

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)


def read_image(path: Path, name: str) -> Iterator[Row]:
    """Yield the one sample of an image file. The pixels are read later, by the task."""
    yield name, {"image": path}


def read_image_folder(folder: Path, name: str) -> Iterator[Row]:
    """Yield the images below `folder` in the order of their names.

    An image in a subfolder has the subfolder's name as its `label`. Hidden files and links to
    folders are passed over.

    Raises:
        InputError: there is no image.
    """
    empty = True
    for directory, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(entry for entry in subfolders if not entry.startswith("."))
        parent = Path(directory)
        label = {} if parent == folder else {"label": parent.name}
        for file in sorted(files):
            path = parent / file
            if path.suffix.lower() in IMAGE_SUFFIXES and not file.startswith("."):
                empty = False
                yield str(Path(name) / path.relative_to(folder)), {"image": path, **label}
    if empty:
        raise InputError(f"{name}: no image in the folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
