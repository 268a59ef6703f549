"""Rules for the texts of an ONNX file: names must be UTF-8.

Protobuf's Python hands out `bytes` in place of `str` for a text that is not, and every user of the
name would fail on it in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from onnxkit.errors import InputError

if TYPE_CHECKING:
    import onnx

_STRING = 9  # google.protobuf.descriptor.FieldDescriptor.TYPE_STRING
_MESSAGE = 11  # TYPE_MESSAGE


def check_texts(model: onnx.ModelProto, path: Path) -> None:
    """Check every text of the model: names, operators, axes, metadata, documentation.

    Raises:
        InputError: one is not UTF-8.
    """
    waiting: list[Any] = [model]
    while waiting:
        for kind, value in _fields(waiting.pop()):
            if kind == _MESSAGE:
                waiting.append(value)
            elif not isinstance(value, str):
                raise InputError(f"{path}: damaged: a name in it is not UTF-8 ({value[:40]!r})")


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Yield (type, value) of every text and message that is set, one by one where repeated."""
    if isinstance(message, TensorProto):  # listing all fields would copy its weights
        texts = ((_STRING, text) for text in (message.name, message.doc_string))
        entries = chain(message.external_data, message.metadata_props)
        yield from chain(texts, ((_MESSAGE, entry) for entry in entries))
        return
    for field, value in message.ListFields():
        if field.type in (_STRING, _MESSAGE):
            for item in value if field.is_repeated else (value,):
                yield field.type, item
