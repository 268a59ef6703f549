"""Files that are there and may not be read: what is said of each kind is that, not that it is damaged."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from onnxkit.errors import InputError
from onnxkit.inputs import read_samples
from onnxkit.safety import open_image, read_audio, read_json, read_npy, read_npz, read_text

READERS: dict[str, Callable[[Path], Any]] = {
    "x.png": open_image,
    "x.wav": lambda path: read_audio(path, 16_000),
    "x.npz": read_npz,
    "x.npy": read_npy,
    "x.json": read_json,
    "x.lark": lambda path: read_text(path, "grammar", max_bytes=100),
    "x.txt": lambda path: list(read_samples(path)),
}


def _refused(*_: Any, **__: Any) -> NoReturn:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("name", READERS)
def test_permission_denied_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"something")
    for module in (io, os):  # root may read everything, so that modes would prove nothing
        monkeypatch.setattr(module, "open", _refused)
    monkeypatch.setattr("builtins.open", _refused)
    monkeypatch.setattr(Path, "open", _refused)
    monkeypatch.setattr(Path, "read_text", _refused)
    with pytest.raises(InputError, match=rf"{name}: cannot be read.*Permission denied"):
        READERS[name](path)


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")

    def refused(path: Any) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=rf"{tmp_path}: cannot be listed \(Permission denied\)"):
        list(read_samples(tmp_path))


def test_texts_have_a_size_and_an_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.lark"
    path.write_bytes("ä".encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.lark: not UTF-8 at byte 0"):
        read_text(path, "grammar", max_bytes=1)
    path.write_text("ab")
    with pytest.raises(InputError, match=r"x\.lark: 2 bytes of grammar; at most 1 are read"):
        read_text(path, "grammar", max_bytes=1)
    assert read_text(path, "grammar", max_bytes=2) == "ab"
