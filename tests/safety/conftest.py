"""Tiny models for the reader's tests, built in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def linear_model() -> onnx.ModelProto:
    """y = x @ w + b, with a subgraph, an attribute tensor and a local function beside."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["branch_out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.ones(4, np.float32), "b")],
    )
    value = numpy_helper.from_array(np.array(True), "yes")
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="dense"),
        helper.make_node("If", ["yes"], ["bias"], then_branch=branch, else_branch=branch),
        helper.make_node("twice", ["xw"], ["xw2"], domain="local"),
        helper.make_node("Add", ["xw2", "bias"], ["y"]),
    ]
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    twice = helper.make_function(
        "local",
        "twice",
        ["a"],
        ["c"],
        [helper.make_node("Constant", [], ["k"], value=two), helper.make_node("Mul", ["a", "k"], ["c"])],
        [helper.make_opsetid("", 18)],
    )
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[twice])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Write a model's protobuf as it is, without onnx's own checks."""

    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save


def make_external(tensor: onnx.TensorProto, **entries: str) -> None:
    """Mark a tensor as external with exactly these entries, and drop its embedded bytes."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


@pytest.fixture
def external() -> Callable[..., None]:
    return make_external
