"""Decoding over ONNX Runtime: token ids in, token ids out; knows no tokenizer and no file format.

Names are imported on first use, so that options cost no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxkit.generate.conversation import Conversation
    from onnxkit.generate.engine import Engine
    from onnxkit.generate.request import Completion, GenerationStats, Request, Sequence, StopCheck

_HOMES = {
    "Completion": "request",
    "Conversation": "conversation",
    "Engine": "engine",
    "GenerationStats": "request",
    "Request": "request",
    "Sequence": "request",
    "StopCheck": "request",
}

__all__ = [
    "Completion",
    "Conversation",
    "Engine",
    "GenerationStats",
    "Request",
    "Sequence",
    "StopCheck",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxkit.generate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxkit.generate.{_HOMES[name]}"), name)
