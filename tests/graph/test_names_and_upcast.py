"""Names from module paths; bfloat16 graphs widened for a check."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from onnxkit.graph.names import SCOPES, module_path, name_by_module
from onnxkit.graph.upcast import bf16_to_fp32
from tests.graph.semantic_graphs import run
from tests.graph.test_passes import parsed


def scoped(node: ir.Node, *scopes: str) -> None:
    node.metadata_props[SCOPES] = repr([*scopes, "some_node"])


def test_nodes_are_called_like_their_modules() -> None:
    model = parsed(
        """g (float[N, 4] x) => (float[N, 4] y) {
        m = MatMul (x, w)
        a = Add (m, b)
        r = Relu (a)
        s = Relu (r)
        y = Neg (s)
    }""",
        w=np.zeros((4, 4), np.float32),
        b=np.zeros(4, np.float32),
    )
    nodes = list(model.graph)
    for node in nodes[:2]:
        scoped(node, "", "model", "model.layer.0.dense")
    for node in nodes[2:4]:
        scoped(node, "", "model", "model.layer.0")
    scoped(nodes[4], "", "model")
    name_by_module(model, prefix="model.")
    names = [node.name for node in nodes]
    assert names == ["layer.0.dense", "layer.0.dense/bias", "layer.0/Relu", "layer.0/Relu_1", "/Neg"]
    assert [node.outputs[0].name for node in nodes] == [*names[:-1], "y"]


def test_paths_of_nodes_without_a_module() -> None:
    node = ir.node("Neg", [ir.Value(name="x")])
    assert module_path(node) == ""
    scoped(node, "", "_empty_nn_module_stack_from_metadata_hook")
    assert module_path(node) == ""


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    weight = np.array([1.0, 1 / 3, -70000.0], dtype=ml_dtypes.bfloat16)
    model = parsed(
        "g (float[3] x) => (float[3] y) { c = Cast <to = 16> (x)  m = Mul (c, w)  y = Cast <to = 1> (m) }"
    )
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"), shape=ir.Shape([3]))
    value.dtype = ir.DataType.BFLOAT16
    next(n for n in model.graph if n.op_type == "Mul").replace_input_with(1, value)
    model.graph.register_initializer(value)
    bf16_to_fp32(model)
    x = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}, tmp_path), x * weight.astype(np.float32))


def test_bfloat16_widens_inside_of_a_subgraph() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (bool c, bfloat16[N] x) => (bfloat16[N] y) {
            y = If (c) <
                then_branch = yes () => (bfloat16[N] a) { a = Relu (x) },
                else_branch = no () => (bfloat16[N] b) { b = Neg (x) }
            >
        }""")
    )
    bf16_to_fp32(model)
    kinds = {value.dtype for graph in (model.graph, *model.graph.subgraphs()) for value in graph.outputs}
    assert kinds == {ir.DataType.FLOAT}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
