"""Weights in blocks: what is stored against naive arithmetic, what ONNX Runtime makes of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxkit.errors import InputError, UsageError
from onnxkit.quantize.blockwise import Blocks, BlockStore, blocks_of
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.schemes import SCHEMES, Scheme
from onnxkit.quantize.select import select
from tests.quantize.graphs import mlp, operators, proto, quantized, random, session

WEIGHT_ONLY = tuple(name for name, scheme in SCHEMES.items() if scheme.weight_only)


def stored(weight: np.ndarray, blocks: Blocks, *, turned: bool = False):
    """Codes, scales and zero points of a weight `[K, N]` (`[N, K]` when turned)."""
    graph = ir.Graph([], [], nodes=[], name="g")
    tensor = ir.tensor(weight, name="w")
    value = ir.Value(name="w", shape=ir.Shape(weight.shape), const_value=tensor)
    graph.register_initializer(value)
    made = BlockStore(graph, blocks).blocked(value, turned=turned, layer="layer")
    parts = (made.codes, made.scales, made.zero_points)
    for part in parts:
        if part is not None:
            assert tuple(part.shape.numpy()) == part.const_value.numpy().shape
    return [part.const_value.numpy() if part is not None else None for part in parts]


def decoded(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, blocks: Blocks) -> np.ndarray:
    """`[N, blocks, size]` by the operator's definition: (code - zero point) * scale, low nibble first."""
    if blocks.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    if zeros is None:
        points = np.full(scales.shape, 1 << (blocks.bits - 1), np.float32)
    elif blocks.bits == 4:
        points = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(len(zeros), -1)[:, : scales.shape[1]]
    else:
        points = zeros
    return (codes.astype(np.float32) - points[..., None].astype(np.float32)) * scales[..., None]


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 70), channels=st.integers(1, 6), size=st.sampled_from([16, 32, 64]),
    bits=st.sampled_from([4, 8]), symmetric=st.booleans(), turned=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_stored_blocks_are_the_nearest_codes(depth, channels, size, bits, symmetric, turned, seed):
    blocks = Blocks(bits=bits, size=size, symmetric=symmetric)
    weight = random(depth, channels, seed=seed)
    codes, scales, zeros = stored(weight.T.copy() if turned else weight, blocks, turned=turned)
    assert (zeros is None) is symmetric
    back = decoded(codes, scales, zeros, blocks).reshape(channels, -1)[:, :depth]
    # A symmetric grid has one step more on one side: what lies at its other end is clipped by up to a step.
    most = (1.0 if symmetric else 0.55) * np.repeat(np.abs(scales), size, axis=1)[:, :depth] + 1e-6
    assert (np.abs(back - weight.T) <= most).all()


@pytest.mark.parametrize("name", WEIGHT_ONLY)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_product_is_that_of_the_stored_weight(name, symmetric):
    options = QuantizeOptions(
        scheme=name, include=(".",), symmetric=symmetric, accuracy_level=1, block_size=16
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
             helper.make_node("Add", ["h", "b"], ["y"], name="layer/bias")]  # fmt: skip
    weight, bias, x = random(40, 12), random(12, seed=1), random(2, 3, 40, seed=2)
    made, _ = quantized(proto(nodes, {"w": weight, "b": bias}, inputs={"x": ["B", "S", 40]}), options=options)
    assert operators(made) == ["MatMulNBits"]
    blocks = blocks_of(SCHEMES[name].bits, 16, symmetric, 1)
    back = decoded(*stored(weight, blocks), blocks).reshape(12, -1)[:, :40].T
    np.testing.assert_allclose(session(made).run({"x": x})["y"], x @ back + bias, atol=1e-4)
    attributes = {each.name: each.i for each in made.graph.node[0].attribute}
    assert attributes == {
        "K": 40, "N": 12, "bits": blocks.bits, "block_size": 16, "accuracy_level": 1
    }  # fmt: skip


def test_a_tied_head_gets_a_copy_and_the_table_stays_float():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node("Reshape", ["x", "flat"], ["rows"], name="rows"),
        helper.make_node("Gemm", ["rows", "table"], ["y"], name="head", transB=1),
    ]
    weights = {"table": random(64, 32), "flat": np.array([-1, 32])}
    model = proto(nodes, weights, inputs={"ids": ["B", "S"]}, ids=True)
    made, selection = quantized(model, options=QuantizeOptions(scheme="int8-weight"))
    assert operators(made) == ["Gather", "Reshape", "MatMulNBits"]
    assert [target.name for target in selection.targets] == ["head"]
    assert "a copy of its own" in selection.kept[0].reason
    names = {tensor.name for tensor in made.graph.initializer}
    assert {"table", "table.int8", "table.int8.scale"} <= names
    ids = np.array([[3, 9]])
    right = weights["table"][ids[0]] @ weights["table"].T
    np.testing.assert_allclose(session(made).run({"ids": ids})["y"], right, atol=0.3)


def test_a_weight_that_is_not_finite_names_its_layer():
    weight = random(32, 8)
    weight[3, 3] = np.nan
    with pytest.raises(InputError, match="layer 'layer'"):
        stored(weight, Blocks(bits=4))


@pytest.mark.parametrize(
    ("size", "level", "message"), [(48, 4, "--block-size 48"), (32, 7, "--accuracy-level 7")]
)
def test_what_the_operator_does_not_take_is_a_usage_error(size, level, message):
    with pytest.raises(UsageError, match=message):
        blocks_of(4, size, True, level)


def test_an_operator_type_that_cannot_be_stored_in_blocks_is_a_usage_error():
    scheme: Scheme = SCHEMES["int4-weight"]
    model = ir.from_proto(mlp())
    with pytest.raises(UsageError, match="int4-weight does not quantize 'Gather'"):
        select(model, scheme, QuantizeOptions(scheme="int4-weight", op_types=("Gather",)))
