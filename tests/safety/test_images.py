from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxkit.errors import InputError, OnnxkitError, UnsafeError
from onnxkit.safety import open_image


def _encoded(form: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def _png_of_size(width: int, height: int) -> bytes:
    """Encode a PNG whose header declares a size that its few bytes of data never hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_usual_formats_are_decoded(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"x.{form.lower()}"
    path.write_bytes(_encoded(form))
    image = open_image(path)
    assert image.size == (9, 7) and image.getpixel((0, 0)) is not None


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_the_mode_is_left_alone(tmp_path: Path, mode: str) -> None:
    (tmp_path / "x.png").write_bytes(_encoded("PNG", mode))
    assert open_image(tmp_path / "x.png").mode == mode


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_data_says(tmp_path: Path, orientation: int) -> None:
    upright = Image.linear_gradient("L").resize((9, 7))
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # Image.Transpose, by the tag's definition
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    stored.save(tmp_path / "x.png", exif=exif)
    image = open_image(tmp_path / "x.png")
    assert image.size == (9, 7) and image.tobytes() == upright.tobytes()


def test_damaged_exif_data_counts_as_none(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "x.png", exif=b"Exif\0\0MM\0\x2a\xff\xff")
    assert open_image(tmp_path / "x.png").size == (3, 2)


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_of_size(*size))
    with pytest.raises(UnsafeError, match="pixels"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.png"):
        open_image(tmp_path / "x.png")


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with pytest.raises(InputError, match=r"x\.png: an empty file, no image"):
        open_image(tmp_path / "x.png")


def test_eps_is_not_handed_to_ghostscript(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    (tmp_path / "x.eps").write_bytes(buffer.getvalue())
    with pytest.raises(InputError):
        open_image(tmp_path / "x.eps")


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    data = _encoded("PNG")
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated"):
        open_image(tmp_path / "x.png")
    with pytest.raises(InputError, match="no such image"):
        open_image(tmp_path / "gone.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_is_read_or_refused(tmp_path: Path, form: str, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(_encoded(form))
    for _ in range(chance.randrange(1, 5)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = tmp_path / "x.img"
    path.write_bytes(data)
    try:
        open_image(path)
    except OnnxkitError as error:
        assert "x.img" in str(error)
