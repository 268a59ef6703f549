"""Tiny graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import pytest
from onnx import TensorProto, helper

Build = Callable[..., onnx.ModelProto]


@pytest.fixture
def build() -> Build:
    """Return a function that makes a model of nodes, inputs {name: (type, shape)} and outputs."""

    def make(
        nodes: Sequence[onnx.NodeProto],
        inputs: dict[str, tuple[int, Sequence[int | str | None] | None]],
        outputs: dict[str, tuple[int, Sequence[int | str | None] | None]],
        *,
        initializers: Sequence[TensorProto] = (),
        opset: int = 18,
        ir: int = 8,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
            [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
            list(initializers),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)

    return make
