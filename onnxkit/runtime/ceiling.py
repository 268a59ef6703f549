"""The newest opset and IR version that the installed ONNX Runtime takes.

ONNX Runtime has no function that tells; it says so when it refuses a file that is newer. So two
models of one node (40 bytes, encoded by hand: no onnx package needed) are offered to it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache

from onnxkit.errors import EnvironmentProblem
from onnxkit.runtime.library import LOG_FATAL, import_onnxruntime, library_version

# Far above any version that will be, and still one the parser reads.
_FUTURE = 9999
# A developer's switch of ONNX Runtime: "0" lets unreleased opsets pass.
_LIFTED = "ALLOW_RELEASED_ONNX_OPSET_ONLY"
_OPSET = re.compile(r"official support for domain ai\.onnx is till opset (\d+)")
_IR = re.compile(r"max supported IR version: (\d+)")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What the installed ONNX Runtime takes at most."""

    opset: int
    ir: int
    onnxruntime: str


@cache
def opset_ceiling() -> Ceiling:
    """Ask the installed ONNX Runtime for its newest opset of ai.onnx and IR version.

    Raises:
        EnvironmentProblem: it does not say, because ALLOW_RELEASED_ONNX_OPSET_ONLY=0 lets
            unreleased opsets pass, or its wording changed.
    """
    ir = _refused(tiny_model(ir=_FUTURE, opset=17), _IR)
    opset = _refused(tiny_model(ir=ir, opset=_FUTURE), _OPSET)
    return Ceiling(opset=opset, ir=ir, onnxruntime=library_version())


def _refused(model: bytes, pattern: re.Pattern[str]) -> int:
    """Return the number that the refusal of `model` names."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    said = "nothing: it took the model"
    try:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind classes without a common base; whatever it is must match
        if match := pattern.search(str(error)):
            return int(match[1])
        said = str(error)
    way_out = "unset it" if _LIFTED in os.environ else "install the onnxruntime of onnxkit's constraints.txt"
    lifted = f" because {_LIFTED} is set" if _LIFTED in os.environ else ""
    raise EnvironmentProblem(
        f"onnxruntime {library_version()} does not tell its newest opset{lifted}: {way_out} (it said {said})"
    )


def tiny_model(*, ir: int, opset: int) -> bytes:
    """Encode y = Identity(x) for one float32 as a ModelProto (field numbers of onnx.proto)."""

    def value(name: bytes) -> bytes:
        shape = _field(1, _field(1, 1))  # TensorShapeProto.dim[0].dim_value = 1
        return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))

    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    graph = _field(1, node) + _field(2, b"g") + _field(11, value(b"x")) + _field(12, value(b"y"))
    return _field(1, ir) + _field(7, graph) + _field(8, _field(2, opset))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _field(number: int, content: int | bytes) -> bytes:
    """Encode one protobuf field: wire type 0 for an int, 2 for bytes."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content
