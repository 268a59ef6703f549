"""Bias correction: the mean of a layer's error is gone afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxkit.quantize.smoothing.bias_correction import bias_shift, correct_biases
from onnxkit.quantize.smoothing.folding import linear_targets
from tests.quantize.graphs import operators, proto, random, session

MS = "com.microsoft"
Array = np.ndarray[Any, Any]


def node(op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], name=f"n.{output}", domain=domain, **attributes)


W = random(8, 6)
B = random(6, seed=1)
GRAPHS: dict[str, tuple[list[Any], dict[str, Array], list[str]]] = {
    "a bias that follows": (
        [node("MatMul", ["x", "w"], "d"), node("Add", ["b", "d"], "y")], {"w": W, "b": B}, ["MatMul", "Add"],
    ),
    "no bias": ([node("MatMul", ["x", "w"], "y")], {"w": W}, ["MatMul", "Add"]),
    "Gemm": ([node("Gemm", ["x", "w", "b"], "y")], {"w": W, "b": B}, ["Gemm"]),
    "Gemm without": ([node("Gemm", ["x", "w"], "y", transB=1)], {"w": W.T.copy()}, ["Gemm", "Add"]),
    "a shared bias": (
        [node("MatMul", ["x", "w"], "d"), node("Add", ["d", "b"], "e"), node("Sub", ["e", "b"], "y")],
        {"w": W, "b": B}, ["MatMul", "Add", "Sub"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_the_shift_arrives_whole(name: str) -> None:
    nodes, weights, expected = GRAPHS[name]
    model = proto(nodes, weights, inputs={"x": ["n", 8]})
    graph = ir.from_proto(model)
    shift = random(6, seed=4)
    correct_biases(graph, linear_targets(graph), {target.name: shift for target in linear_targets(graph)})
    made = ir.to_proto(graph)
    assert operators(made) == expected
    x = {"x": random(5, 8, seed=5)}
    np.testing.assert_allclose(session(made).run(x)["y"], session(model).run(x)["y"] + shift, atol=1e-5)


def test_a_packed_attention_takes_it_in_its_bias() -> None:
    attend = node("Attention", ["x", "w", "b"], "y", domain=MS, num_heads=2)
    model = proto([attend], {"w": random(8, 24), "b": random(24, seed=1)}, inputs={"x": ["n", "s", 8]})
    graph = ir.from_proto(model)
    shift = np.zeros(24, np.float32)
    shift[16:] = 2.0  # of the values: attention's rows add up to 1
    correct_biases(graph, linear_targets(graph), {"n.y": shift})
    x = {"x": random(1, 3, 8, seed=5)}
    right = session(model).run(x)["y"] + 2.0
    np.testing.assert_allclose(session(ir.to_proto(graph)).run(x)["y"], right, atol=1e-5)


def test_the_mean_error_is_gone() -> None:
    x = random(1000, 8) + 3
    rounded = np.rint(W.T * 3) / 3
    shift = bias_shift(W.T, rounded, x.mean(axis=0))
    errors = x @ rounded.T + shift - x @ W
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=1e-4)


def test_layers_without_a_shift_stay() -> None:
    model = proto([node("MatMul", ["x", "w"], "y")], {"w": W}, inputs={"x": ["n", 8]})
    graph = ir.from_proto(model)
    correct_biases(graph, linear_targets(graph), {})
    assert operators(ir.to_proto(graph)) == ["MatMul"]
