"""Images: the size is read from the header first, and a bomb is an error, not a warning."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from onnxkit.errors import InputError, UnsafeError
from onnxkit.safety.paths import regular_file
from onnxkit.safety.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a GiB of RGB, rounded down."""

# Rasters that Pillow decodes by itself. Not EPS (runs Ghostscript), PDF, WMF and the like.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")


def open_image(path: Path) -> Image:
    """Read and decode the first frame of an image, turned as its EXIF data says; its mode is left as it is.

    Raises:
        InputError: missing, truncated, or no image of a known format.
        UnsafeError: its header declares more than `MAX_IMAGE_PIXELS` pixels.
    """
    from PIL import Image

    size = regular_file(path, "image").st_size
    shown = printable(str(path), limit=300)
    if size == 0:
        raise InputError(f"{shown}: an empty file, no image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked here; remarks on metadata help nobody
            with Image.open(path, formats=_FORMATS) as image:
                _check_size(image.size, shown)
                image.load()
                return _upright(image)
    except Image.DecompressionBombError as error:
        raise UnsafeError(f"{shown}: its header declares more than {MAX_IMAGE_PIXELS} pixels") from error
    except MemoryError as error:
        raise InputError(f"{shown}: too large to decode") from error
    except PermissionError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from error
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error) as error:
        raise InputError(f"{shown}: truncated, or no image in a known format") from error
    except (AttributeError, ArithmeticError, RuntimeError) as error:  # what its parsers raise on damage
        raise InputError(f"{shown}: damaged image ({type(error).__name__})") from error


def _upright(image: Image) -> Image:
    """A copy that stands as a viewer shows it; orientation data that cannot be read counts as none."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # its parsers raise all kinds on damaged metadata; the pixels are whole
        return image.copy()


def _check_size(size: tuple[int, int], shown: str) -> None:
    width, height = size
    if width * height > MAX_IMAGE_PIXELS:
        raise UnsafeError(f"{shown}: {width} by {height} pixels; at most {MAX_IMAGE_PIXELS} are decoded")
    if width < 1 or height < 1:
        raise InputError(f"{shown}: an image without pixels")
