"""Turns ONNX Runtime's exceptions into onnxkit's: what, where, how to mend it, in one line."""

from __future__ import annotations

import re
from collections.abc import Callable

from onnxkit.errors import InputError, OnnxkitError, ResourceError
from onnxkit.runtime.library import library_version

_MEMORY = re.compile(
    r"Failed to allocate memory|bad_alloc|out of memory|CUBLAS_STATUS_ALLOC_FAILED|std::length_error", re.I
)
# "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/…/model.cc:256 onnxruntime::f(args) text"
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SOURCE = re.compile(r"/?onnxruntime_src/\S+:\d+(?: |$)|\b\w+\.cc:\d+ ")
_FUNCTION = re.compile(r"(?:[\w:]*\w[*&]? )?onnxruntime::[\w:~<>]+\((?:[^()]|\([^()]*\))*\)(?: const)? ")
_WRAPPERS = ("Load model from", "Exception during initialization:")


def _ir(match: re.Match[str]) -> str:
    return (
        f"it has IR version {match[1]}, onnxruntime {library_version()} reads up to {match[2]}: "
        "write it with an older IR version (onnxkit export does), or install a newer onnxruntime"
    )


def _opset(match: re.Match[str]) -> str:
    domain = "" if match[2] == "ai.onnx" else f" of domain {match[2]}"
    return (
        f"it has opset {match[1]}{domain}, onnxruntime {library_version()} takes up to {match[3]}: "
        "export it with an older opset (--opset), or install a newer onnxruntime"
    )


def _operator(match: re.Match[str]) -> str:
    return (
        f"onnxruntime {library_version()} knows no operator {match[2]} (node {match[1]!r}, opset {match[3]})"
    )


def _registered(match: re.Match[str]) -> str:
    return f"onnxruntime {library_version()} knows no operator {match[1]}"


def _kernel(match: re.Match[str]) -> str:
    return (
        f"onnxruntime {library_version()} cannot run {match[1]} on these data types with this "
        f"provider (node {match[2]!r}); on a CPU that is so of bfloat16, which needs --ep cuda"
    )


def _external(match: re.Match[str]) -> str:
    return f"the weights of {match[1]!r} are not in the external data file, which is missing or truncated"


def _corrupt(_: re.Match[str]) -> str:
    return "it is no ONNX model, or it is corrupt or truncated: copy or download it again"


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"model IR version: (\d+), max supported IR version: (\d+)"), _ir),
    (re.compile(r"Opset (\d+) is under development.*domain (\S+) is till opset (\d+)", re.S), _opset),
    (re.compile(r'In Node, \("([^"]*)", (\w+), .*No Op registered for .* with domain_version of (\d+)', re.S),
     _operator),
    (re.compile(r"Fatal error: ([\w.:]+?)\(-?\d+\) is not a registered function/op"), _registered),
    (re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'"), _kernel),
    (re.compile(r"External data path validation failed for initializer: (\S+?)\. "), _external),
    (re.compile(r"External initializer: (\S+) offset: .*out of bounds", re.S), _external),
    (re.compile(r"[Pp]rotobuf parsing failed|No graph was found in the protobuf|INVALID_PROTOBUF"), _corrupt),
)  # fmt: skip


def load_failure(error: Exception, model: str) -> OnnxkitError:
    """Explain why ONNX Runtime refuses `model` (a path or a description)."""
    text = str(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return ResourceError(f"{model}: not enough memory to load it: {plain(text)}")
    for pattern, explain in _RULES:
        if match := pattern.search(text):
            return InputError(f"{model}: {explain(match)}")
    return InputError(f"{model}: onnxruntime {library_version()} refuses it: {plain(text)}")


def run_failure(error: Exception, model: str) -> OnnxkitError:
    """Explain why a run failed: memory, or shapes that the graph cannot take."""
    text = str(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return ResourceError(f"{model}: out of memory while running: use a smaller batch or shorter inputs")
    if match := re.search(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", text, re.S):
        return InputError(f"{model}: {match[1]} node {match[2]!r} failed: {plain(match[3])}")
    return InputError(f"{model}: the run failed: {plain(text)}")


def plain(text: str) -> str:
    """Strip ONNX Runtime's error code, source position and C++ signature from a message."""
    for pattern in (_CODE, _SOURCE, _FUNCTION):
        text = pattern.sub("", text)
    for wrapper in _WRAPPERS:
        if text.startswith(wrapper):
            text = text.partition("failed:")[2] or text.removeprefix(wrapper)
    return " ".join(text.split()) or "no reason given"
