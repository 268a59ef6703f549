"""A model whose run nothing ends but an interrupt."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def endless_model() -> onnx.ModelProto:
    """Return a loop of 2^62 additions to `x`, a vector of one number."""

    def value(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int, ...] = (1,)) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    on, off = value("on", TensorProto.BOOL, ()), value("off", TensorProto.BOOL, ())
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["off"]), helper.make_node("Add", ["held", "held"], ["sum"])],
        "body", [value("turn", TensorProto.INT64, ()), on, value("held")], [off, value("sum")],
    )  # fmt: skip
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [1 << 62])
    loop = helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)
    graph = helper.make_graph([loop], "endless", [value("x")], [value("y")], [turns])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
