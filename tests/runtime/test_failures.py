"""ONNX Runtime's messages become one clean line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.errors import InputError, ResourceError
from onnxkit.runtime.failures import load_failure, plain, run_failure

WITH_SIGNATURE = (
    "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: "
    "/onnxruntime_src/onnxruntime/core/x.cc:51 onnxruntime::Initializer::"
    "Initializer(const onnx::TensorProto&, const std::path&) "
    "[ONNXRuntimeError] : 1 : FAIL : tensorprotoutils.cc:1876 GetExtDataFromTensorProto it went wrong\n"
)


def test_source_positions_and_signatures_go() -> None:
    assert plain(WITH_SIGNATURE) == "GetExtDataFromTensorProto it went wrong"
    assert plain("Load model from a/b.onnx failed:This is an invalid model.") == "This is an invalid model."
    assert plain("") == "no reason given"


@given(st.text())
def test_any_text_becomes_one_line(text: str) -> None:
    for error in (load_failure(RuntimeError(text), "m.onnx"), run_failure(RuntimeError(text), "m.onnx")):
        assert str(error).startswith("m.onnx: ")
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9"),
    ],
)
def test_memory(error: Exception) -> None:
    assert isinstance(load_failure(error, "m"), ResourceError)
    assert isinstance(run_failure(error, "m"), ResourceError)


def test_anything_else_is_the_inputs_fault_and_names_the_version() -> None:
    failure = load_failure(RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : Cycle"), "m.onnx")
    assert isinstance(failure, InputError)
    assert str(failure).endswith("refuses it: Cycle")
