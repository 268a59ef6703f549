"""Packed products cut into their parts."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxkit.graph.unpacking import divide
from tests.quantize.graphs import operators, proto, random, session


def packed(name: str = "attn.q,k,v", *, bias: bool = True):
    """x [B,S,32] -> [q | k | v] of 16, 8 and 8 -> each its own output."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name=name)]
    if bias:
        nodes.append(helper.make_node("Add", ["m", "b"], ["s"], name=f"{name}/bias"))
    nodes.append(
        helper.make_node("Split", ["s" if bias else "m", "sizes"], ["q", "k", "v"], name="cut", axis=-1)
    )
    weights = {"w": random(32, 32), "sizes": np.array([16, 8, 8])}
    weights |= {"b": random(32, seed=1)} if bias else {}
    return proto(nodes, weights, inputs={"x": ["B", "S", 32]}, outputs=("q", "k", "v"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("apart", "names"),
    [
        (("attn.q", "attn.k"), ["attn.q", "attn.k,v"]),
        (("attn.k", "attn.v"), ["attn.q,k", "attn.v"]),
        (("attn.q", "attn.k", "attn.v"), ["attn.q", "attn.k", "attn.v"]),
    ],
)
def test_parts_compute_what_the_whole_did(bias, apart, names):
    model = packed(bias=bias)
    graph = ir.from_proto(model)
    pairs = set(itertools.pairwise(apart))
    joined = divide(graph, lambda one, other: (one, other) not in pairs)
    made = ir.to_proto(graph)
    assert [node.name for node in made.graph.node if node.op_type == "MatMul"] == names
    assert joined == {name: f"attn.{name[5]}" for name in names if "," in name}
    x = random(2, 3, 32, seed=2)
    before, after = session(model).run({"x": x}), session(made).run({"x": x})
    for output in ("q", "k", "v"):
        np.testing.assert_allclose(after[output], before[output], atol=1e-5)


def test_a_whole_of_equal_parts_stays():
    graph = ir.from_proto(packed())
    assert divide(graph, lambda one, other: True) == {"attn.q,k,v": "attn.q"}
    assert operators(ir.to_proto(graph)) == ["MatMul", "Add", "Split"]


def test_parts_without_names_are_numbered():
    graph = ir.from_proto(packed("h.0.attn.c_attn"))
    divide(graph, lambda one, other: False)
    found = [node.name for node in graph.graph if node.op_type == "MatMul"]
    assert found == [f"h.0.attn.c_attn/{number}" for number in range(3)]
