"""Scaled inputs: what each graph pattern does with the division, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxkit.quantize.smoothing.folding import Group, groups_of, linear_targets, scale_inputs
from tests.quantize.graphs import mlp, operators, proto, random, session

MS = "com.microsoft"
Array = np.ndarray[Any, Any]


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
) -> Any:
    return helper.make_node(op, inputs, outputs, name=f"n.{outputs[0]}", domain=domain, **attributes)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def scaled(model: onnx.ModelProto, seed: int = 3) -> tuple[onnx.ModelProto, list[Group]]:
    """Scale every group's inputs by random factors; return the result and the groups."""
    graph = ir.from_proto(copy.deepcopy(model))
    groups = groups_of(linear_targets(graph))
    rng = np.random.default_rng(seed)
    for group in reversed(groups):
        factors = np.exp(rng.standard_normal(int(group.ties.max()) + 1)).astype(np.float32)
        scale_inputs(graph, group, factors[group.ties])
    return ir.to_proto(graph), groups


def check(model: onnx.ModelProto, muls: int, *shape: int, outputs: int = 1) -> list[Group]:
    """The scaled model gives the same; `muls` more Mul nodes stand in it. Return the groups."""
    made, groups = scaled(model)
    x = random(*shape, seed=9)
    before, after = session(model), session(made)
    feeds = {before.inputs[0].name: x}
    for name, right in before.run(feeds).items():
        np.testing.assert_allclose(after.run(feeds)[name], right, rtol=1e-4, atol=1e-5 * np.abs(right).max())
    assert operators(made).count("Mul") - operators(model).count("Mul") == muls
    return groups


def layers(*nodes: Any, outputs: Sequence[str] = ("y",), width: int = 8, **weights: Array) -> onnx.ModelProto:
    return proto(nodes, weights, inputs={"x": ["batch", "tokens", width]}, outputs=outputs)


def test_a_relu_lets_the_division_through_to_the_layer_before_it() -> None:
    groups = check(mlp(), 1, 2, 3, 32)
    assert [group.absorption is None for group in groups] == [True, False]


@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_a_normalization_takes_the_division(op: str) -> None:
    vectors = {"g": random(8, seed=1), "b": random(8, seed=2)}
    inputs = ["x", "g", "b"] if op == "LayerNormalization" else ["x", "g"]
    model = layers(
        node(op, inputs, ["h"], epsilon=1e-5, axis=-1),
        node("MatMul", ["h", "w"], ["q"]), node("MatMul", ["h", "v"], ["k"]),
        node("Concat", ["q", "k"], ["y"], axis=2),
        w=random(8, 6, seed=3), v=random(8, 4, seed=4), **{k: v for k, v in vectors.items() if k in inputs},
    )  # fmt: skip
    (group,) = check(model, 0, 2, 3, 8)
    assert len(group.targets) == 2


def test_a_residual_that_reads_the_normalization_keeps_it_as_it_is() -> None:
    model = layers(
        node("LayerNormalization", ["x", "g"], ["h"]), node("MatMul", ["h", "w"], ["d"]),
        node("Add", ["d", "h"], ["y"]), g=random(8), w=random(8, 8, seed=1),
    )  # fmt: skip
    check(model, 1, 2, 3, 8)


def test_a_normalization_that_is_an_output_keeps_it_as_it_is() -> None:
    model = layers(
        node("LayerNormalization", ["x", "g"], ["h"]), node("MatMul", ["h", "w"], ["y"]),
        outputs=("y", "h"), g=random(8), w=random(8, 8, seed=1),
    )  # fmt: skip
    check(model, 1, 2, 3, 8)


def test_skip_rms_norm_scales_its_first_output_only() -> None:
    model = layers(
        node("SkipSimplifiedLayerNormalization", ["x", "x", "g"], ["h", "", "", "s"], domain=MS),
        node("MatMul", ["h", "w"], ["d"]), node("Add", ["d", "s"], ["y"]),
        g=random(8), w=random(8, 8, seed=1),
    )  # fmt: skip
    check(model, 0, 2, 3, 8)


def test_two_normalizations_that_share_a_weight_part() -> None:
    model = layers(
        node("LayerNormalization", ["x", "g"], ["h"]), node("MatMul", ["h", "w"], ["d"]),
        node("LayerNormalization", ["d", "g"], ["y"]), g=random(8), w=random(8, 8, seed=1),
    )  # fmt: skip
    check(model, 0, 2, 3, 8)


def test_a_norm_of_primitives_takes_it_in_its_weight() -> None:
    model = layers(
        node("ReduceMean", ["x", "axes"], ["m"], keepdims=1), node("Sub", ["x", "m"], ["c"]),
        node("Mul", ["g", "c"], ["h"]), node("MatMul", ["h", "w"], ["y"]),
        axes=ints(-1), g=random(8), w=random(8, 8, seed=1),
    )  # fmt: skip
    check(model, 0, 2, 3, 8)


def test_a_gate_lets_it_through_to_the_other_side() -> None:
    model = layers(
        node("MatMul", ["x", "gw"], ["g"]), node("Sigmoid", ["g"], ["s"]), node("Mul", ["g", "s"], ["silu"]),
        node("MatMul", ["x", "uw"], ["u"]), node("Mul", ["silu", "u"], ["h"]),
        node("MatMul", ["h", "dw"], ["y"]),
        gw=random(8, 12), uw=random(8, 12, seed=1), dw=random(12, 8, seed=2),
    )  # fmt: skip
    groups = check(model, 1, 2, 3, 8)  # the Mul is x's
    assert [group.absorption is None for group in groups] == [True, False]


def test_a_square_is_not_a_gate() -> None:
    model = layers(
        node("MatMul", ["x", "uw"], ["u"]), node("Mul", ["u", "u"], ["h"]),
        node("MatMul", ["h", "dw"], ["y"]),
        uw=random(8, 12, seed=1), dw=random(12, 8, seed=2),
    )  # fmt: skip
    check(model, 2, 2, 3, 8)


def test_gemms_behind_reshapes_with_transposed_weights_share_one_division() -> None:
    model = layers(
        node("LayerNormalization", ["x", "g"], ["h"]),
        node("Reshape", ["h", "flat"], ["h1"]), node("Gemm", ["h1", "w", "c"], ["q"], transB=1),
        node("Reshape", ["h", "flat"], ["h2"]), node("Gemm", ["h2", "v"], ["k"]),
        node("Add", ["q", "k"], ["y"]), g=random(8), flat=ints(-1, 8), w=random(6, 8, seed=1),
        c=random(6, seed=2), v=random(8, 6, seed=3),
    )  # fmt: skip
    (group,) = check(model, 0, 2, 3, 8)
    assert len(group.targets) == 2


def test_tied_weights_are_left_alone() -> None:
    ids = helper.make_node("Gather", ["w", "ids"], ["e"], name="table")
    model = layers(
        ids, node("LayerNormalization", ["x", "g"], ["h"]),
        node("Gemm", ["h1", "w"], ["d"], transB=1), g=random(8), w=random(5, 8, seed=1), ids=ints(0),
    )  # fmt: skip
    model.graph.node.insert(2, node("Reshape", ["h", "flat"], ["h1"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(ints(-1, 8), "flat"))
    model.graph.node.append(node("Add", ["d", "zero"], ["y"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    assert check(model, 0, 2, 3, 8) == []


def test_a_layer_with_a_tied_neighbour_gets_a_mul_of_its_own() -> None:
    model = layers(
        node("LayerNormalization", ["x", "g"], ["h"]), node("MatMul", ["h", "w"], ["q"]),
        node("MatMul", ["h", "v"], ["k"]), node("MatMul", ["k", "v"], ["k2"]),
        node("Add", ["q", "k2"], ["y"]),
        g=random(8), w=random(8, 8, seed=1), v=random(8, 8, seed=2),
    )  # fmt: skip
    groups = check(model, 1, 2, 3, 8)
    assert [target.name for group in groups for target in group.targets] == ["n.q"]


def attention(packed: bool, heads: int = 2, width: int = 8) -> onnx.ModelProto:
    """Scaled dot products in primitives: three products, or one and a five-axis transpose."""
    half = width // heads
    if packed:
        make = [
            node("MatMul", ["x", "w"], ["qkv0"]), node("Add", ["qkv0", "b"], ["qkv"]),
            node("Reshape", ["qkv", "five"], ["r"]), node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
            node("Split", ["t"], ["q0", "k0", "v0"], axis=0, num_outputs=3),
            *(node("Squeeze", [f"{n}0", "first"], [n]) for n in "qkv"),
        ]  # fmt: skip
    else:
        make = [
            node("MatMul", ["x", "w"], ["qkv0"]), node("Add", ["qkv0", "b"], ["qkv"]),
            node("Split", ["qkv", "parts"], ["q1", "k1", "v1"], axis=2),
            *(node("Reshape", [f"{n}1", "four"], [f"{n}2"]) for n in "qkv"),
            *(node("Transpose", [f"{n}2"], [n], perm=[0, 2, 1, 3]) for n in "qkv"),
        ]  # fmt: skip
    weights = {
        "w": random(width, 3 * width, seed=1), "b": random(3 * width, seed=2),
        "o": random(width, width, seed=3),
        "five": ints(0, 0, 3, heads, half), "four": ints(0, 0, heads, half), "flat": ints(0, 0, width),
        "parts": ints(width, width, width), "first": ints(0),
    }  # fmt: skip
    rest = [
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["c0"]),
        node("Transpose", ["c0"], ["c1"], perm=[0, 2, 1, 3]), node("Reshape", ["c1", "flat"], ["c"]),
        node("MatMul", ["c", "o"], ["y"]),
    ]  # fmt: skip
    used = {name for item in [*make, *rest] for name in item.input}
    return layers(*make, *rest, width=width, **{key: value for key, value in weights.items() if key in used})


@pytest.mark.parametrize("packed", [True, False])
def test_the_values_of_an_attention_take_the_division_of_what_follows_it(packed: bool) -> None:
    groups = check(attention(packed), 1, 2, 3, 8)  # the Mul is x's
    assert groups[1].absorption is not None


def test_a_packed_attention_operator_takes_it_in_its_last_columns() -> None:
    model = layers(
        node("Attention", ["x", "w", "b"], ["c"], domain=MS, num_heads=2), node("MatMul", ["c", "o"], ["y"]),
        w=random(8, 24), b=random(24, seed=1), o=random(8, 8, seed=2),
    )  # fmt: skip
    groups = check(model, 1, 2, 3, 8)
    assert groups[1].absorption is not None


def test_values_that_several_heads_share_have_one_factor() -> None:
    model = layers(
        node("MatMul", ["x", "wq"], ["q"]), node("MatMul", ["x", "wk"], ["k"]),
        node("MatMul", ["x", "wv"], ["v"]),
        node("GroupQueryAttention", ["q", "k", "v", "", "", "last", "total"], ["c"], domain=MS, num_heads=4,
             kv_num_heads=2),
        node("MatMul", ["c", "o"], ["y"]),
        wq=random(8, 32), wk=random(8, 16, seed=1), wv=random(8, 16, seed=2), o=random(32, 8, seed=3),
        last=np.array([[2], [2]], np.int32), total=np.array(3, np.int32),
    )  # fmt: skip
    graph = ir.from_proto(model)
    group = groups_of(linear_targets(graph))[1]
    ties = group.ties.reshape(4, 8)
    assert np.array_equal(ties[0], ties[1]) and np.array_equal(ties[2], ties[3])
    with pytest.raises(ValueError, match="repeated"):
        scale_inputs(graph, group, np.arange(1, 33, dtype=np.float32))
    factors = (1 + group.ties).astype(np.float32)
    group.absorption.divide(graph.graph, factors)  # type: ignore[union-attr]
    wv = graph.graph.initializers["wv"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(wv * (1 + np.arange(16)), random(8, 16, seed=2), rtol=1e-6)


def test_a_value_cache_keeps_its_scale() -> None:
    """What a graph gives out does not change: the division stays in front of the output projection."""
    model = attention(False)
    model.graph.output.append(helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, None))
    groups = check(model, 2, 2, 3, 8)
    assert groups[1].absorption is None


def test_a_token_that_is_picked_is_no_channel() -> None:
    model = layers(
        node("LayerNormalization", ["x", "g"], ["h"]), node("Gather", ["h", "first"], ["c"], axis=1),
        node("MatMul", ["c", "w"], ["y"]), g=random(8), first=np.array(1, np.int64), w=random(8, 8, seed=1),
    )  # fmt: skip
    check(model, 1, 2, 3, 8)


@pytest.mark.parametrize("bad", [np.zeros(8), np.full(8, np.nan), np.ones(7)])
def test_factors_must_be_positive_numbers(bad: Array) -> None:
    model = layers(node("MatMul", ["x", "w"], ["y"]), w=random(8, 8))
    graph = ir.from_proto(model)
    (group,) = groups_of(linear_targets(graph))
    with pytest.raises(ValueError, match="positive"):
        scale_inputs(graph, group, bad.astype(np.float32))
