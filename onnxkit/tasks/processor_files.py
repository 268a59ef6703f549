"""Where a model directory says how images and audio are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxkit.errors import InputError
from onnxkit.safety import read_json

_MAKERS = {"image_processor": "AutoImageProcessor", "feature_extractor": "AutoFeatureExtractor"}


def processor_settings(folder: Path, part: str) -> tuple[dict[str, Any] | None, Path]:
    """Return preprocessor_config.json, or a part of processor_config.json, and the path of what was read.

    Args:
        folder: where they stand.
        part: "image_processor" or "feature_extractor".

    Returns:
        The settings, None where there are none.
    """
    own, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    if own.exists():
        return read_json(own), own
    settings = read_json(joint).get(part) if joint.exists() else None
    return (settings if isinstance(settings, dict) else None), joint


def required_settings(folder: Path, part: str) -> tuple[dict[str, Any], Path]:
    """The same; raises InputError where there are none."""
    settings, path = processor_settings(folder, part)
    if settings is None:
        raise InputError(
            f"{folder}: preprocessor_config.json is missing; copy it from the checkpoint, or write it there "
            f"with transformers' {_MAKERS[part]}.from_pretrained(MODEL).save_pretrained(DIR)"
        )
    return settings, path
