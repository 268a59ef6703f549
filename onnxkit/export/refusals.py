"""What stands in a model's way, said by what the model does and not by where torch gave up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import FrameType

import torch

from onnxkit.errors import OnnxkitError
from onnxkit.export.signature import BATCH
from onnxkit.runtime.failures import plain
from onnxkit.safety import printable

_BY_VALUES = re.compile(
    r"item\(\) cannot be called|torch\.nonzero\(\)|data-dependent|copy out of meta tensor"
    r"|\.numpy\(\) is not supported|\.tolist\(\) is not supported|_local_scalar_dense|[Uu]nbacked"
)
"""What torch says where a model asks a tensor without values for some."""
_BY_SIZES = re.compile(r"Constraints violated(?: \((\w+)\))?|is invalid for input of size .*\bs\d")
"""What torch says where a size that has to be free was fixed or must be a multiple of something."""
_BY_RUNTIME = re.compile(r"while running (\w+) node\. Name:'([^']*)'(?: Status Message: (.*))?", re.S)
"""What ONNX Runtime says where it loads a graph and fails in its midst."""
_PLAIN = ("LevelRefused", "HookRefused", "NeedsDecomposition")
"""Exceptions of ours whose message is the whole reason."""
_LENGTH = 300


def reason(error: BaseException) -> str:
    """The innermost cause, in one short line."""
    causes = list(_causes(error))
    said = str(causes[-1])
    if asks_for_values(error):
        who = _innermost_module(causes) or "the model"
        return f"{who} computes one thing or another by the values it meets (data-dependent control flow)"
    fixed = _BY_SIZES.search(said)
    if fixed is not None:
        if fixed[1] == BATCH:
            return "the model takes batches of one size only"
        return "the model computes in blocks or steps that follow from the length of its input, and fix it"
    failed = _BY_RUNTIME.search(said)
    if failed is not None:
        why = plain(failed[3] or "")
        return printable(f"ONNX Runtime fails to run the {failed[1]} {failed[2]}: {why}", limit=_LENGTH)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    kind = type(causes[-1]).__name__
    ours = kind in _PLAIN or isinstance(causes[-1], OnnxkitError)
    line = (lines[0] if ours else f"{kind}: {lines[0]}") if lines else kind
    return printable(line, limit=_LENGTH)


def asks_for_values(error: BaseException) -> bool:
    """Whether a model without values was given up since it asks for some."""
    return _BY_VALUES.search(str(list(_causes(error))[-1])) is not None


def not_run(model: torch.nn.Module, error: BaseException) -> str:
    """Why what a model keeps from token to token cannot be asked of it."""
    return f"{type(model).__name__} cannot be exported for generation: {reason(error)}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _innermost_module(causes: list[BaseException]) -> str | None:
    """The class of the last module, none of torch's, that was running when the error was raised."""
    for cause in reversed(causes):
        modules = [found for frame in _frames(cause) if (found := _module_of(frame)) is not None]
        if modules:
            return modules[-1]
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _module_of(frame: FrameType) -> str | None:
    owner = frame.f_locals.get("self")
    ours = type(owner).__module__.startswith(("torch.", "onnxkit."))
    return None if ours or not isinstance(owner, torch.nn.Module) else type(owner).__name__
