"""Weights in blocks: what is stored against naive arithmetic, what ONNX Runtime makes of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxkit.errors import InputError
from onnxkit.quantize.codes.block_store import BlockStore
from onnxkit.quantize.codes.codebook import BlockedTensor, CodeBook
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.runtime import RuntimeOptions, open_session
from tests.quantize.graphs import operators, proto, quantized, random, session

SETTINGS = [(bits, symmetric) for bits in (4, 8) for symmetric in (False, True)]


def decoded(weight: np.ndarray, blocks: BlockFormat, *, turned: bool = False) -> np.ndarray:
    """`[N, K]`: what the stored values of a weight `[K, N]` (`[N, K]` when turned) stand for.

    By the operator's definition: (code - zero point) * scale, low nibble first.
    """
    graph = ir.Graph([], [], nodes=[ir.node("Neg", [ir.Value(name="x")])], name="g")
    value = ir.Value(name="w", shape=ir.Shape(weight.shape), const_value=ir.tensor(weight, name="w"))
    graph.register_initializer(value)
    item = BlockedTensor(tensor=value.const_value, name="w", turned=turned, layer="layer", seen=False)
    made = BlockStore(graph, CodeBook()).matrix(item, blocks)
    parts = [each for each in (made.codes, made.scales, made.zero_points) if each is not None]
    stored = [each if each.is_initializer() else each.producer().inputs[0] for each in parts]
    for each in stored:
        assert tuple(each.shape.numpy()) == each.const_value.numpy().shape
    codes, scales, *zeros = (each.const_value.numpy() for each in stored)
    assert bool(zeros) is not blocks.symmetric
    return dequantized(codes, scales, zeros[0] if zeros else None, blocks)[:, : made.depth]


def dequantized(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, blocks: BlockFormat):
    codes = codes.reshape(*scales.shape, -1)
    if blocks.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, -1)
    if zeros is None:
        points = np.full(scales.shape, 1 << (blocks.bits - 1), np.float32)
    elif blocks.bits == 4:
        points = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(len(zeros), -1)[:, : scales.shape[1]]
    else:
        points = zeros
    floats = (codes.astype(np.float32) - points[..., None].astype(np.float32)) * scales[..., None].astype(
        np.float32
    )
    return floats.reshape(len(codes), -1)


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 70), channels=st.integers(1, 6), size=st.sampled_from([16, 32, 64]),
    bits=st.sampled_from([4, 8]), symmetric=st.booleans(), turned=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_stored_blocks_are_near_the_weights(depth, channels, size, bits, symmetric, turned, seed):
    blocks = BlockFormat(bits=bits, size=size, symmetric=symmetric)
    weight = random(depth, channels, seed=seed)
    back = decoded(weight.T.copy() if turned else weight, blocks, turned=turned)
    step = 2 * np.abs(weight).max() / (2**bits - 1 - symmetric)
    # A symmetric grid has one step more on one side: what lies at its other end is clipped by up to a step.
    assert np.abs(back - weight.T).max() <= (1.02 if symmetric else 0.55) * step + 1e-6


@pytest.mark.parametrize(("bits", "symmetric"), SETTINGS)
@pytest.mark.parametrize("depth", [40, 64])
def test_the_product_is_that_of_the_stored_weight(bits, symmetric, depth):
    options = QuantizeOptions(
        scheme=f"int{bits}-weight", algorithm="rtn", include=(".",), symmetric=symmetric,
        accuracy_level=1, block_size=16,
        embeddings=f"int{bits}",
    )  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
             helper.make_node("Add", ["h", "b"], ["y"], name="layer/bias")]  # fmt: skip
    weight, bias, x = random(depth, 12), random(12, seed=1), random(2, 3, depth, seed=2)
    model = proto(nodes, {"w": weight, "b": bias}, inputs={"x": ["B", "S", depth]})
    made, _ = quantized(model, options=options)
    assert operators(made) == ["Identity", "Cast", "MatMulNBits"]
    back = decoded(weight, BlockFormat(bits=bits, size=16, symmetric=symmetric)).T
    np.testing.assert_allclose(session(made).run({"x": x})["y"], x @ back + bias, atol=1e-4)
    attributes = {each.name: each.i for each in made.graph.node[-1].attribute}
    assert attributes == {"K": depth, "N": 12, "bits": bits, "block_size": 16, "accuracy_level": 1}


@pytest.mark.parametrize("bits", [4, 8])
def test_the_product_is_right_where_onnx_runtime_folds_nothing(bits):
    """Codes that are constant beside scales that are not are packed wrongly (accuracy level 4)."""
    options = QuantizeOptions(scheme=f"int{bits}-weight", algorithm="rtn", include=(".",), accuracy_level=4)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    weight, x = random(64, 12), random(2, 3, 64, seed=2)
    made, _ = quantized(proto(nodes, {"w": weight}, inputs={"x": ["B", "S", 64]}), options=options)
    plain = open_session(made.SerializeToString(), RuntimeOptions(graph_optimization="none"))
    found = plain.run({"x": x})["y"]
    expected = session(made).run({"x": x})["y"]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def tied(head: str) -> onnx.ModelProto:
    """A table of 64 words by 32, and a head over the same numbers."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node("Reshape", ["x", "flat"], ["rows"], name="rows"),
    ]
    if head == "Gemm":
        nodes.append(helper.make_node("Gemm", ["rows", "table"], ["y"], name="head", transB=1))
    else:
        nodes.append(helper.make_node("Transpose", ["table"], ["t"], name="turn", perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", ["rows", "t"], ["y"], name="head"))
    weights = {"table": random(64, 32), "flat": np.array([-1, 32])}
    return proto(nodes, weights, inputs={"ids": ["B", "S"]}, ids=True)


@pytest.mark.parametrize(("bits", "symmetric"), SETTINGS)
@pytest.mark.parametrize("head", ["Gemm", "MatMul"])
def test_a_tied_head_multiplies_with_the_bytes_of_the_table(bits, symmetric, head):
    options = QuantizeOptions(
        scheme="int4-weight",
        algorithm="rtn",
        embeddings=f"int{bits}",
        symmetric=symmetric,
        accuracy_level=1,
        include=(".",),
    )
    made, selection = quantized(tied(head), options=options)
    assert [target.name for target in selection.targets] == ["embed", "head"]
    assert set(operators(made)) == {"Cast", "Reshape", "GatherBlockQuantized", "MatMulNBits"}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert sum(array.size for array in stored.values() if array.dtype == np.uint8) == 64 * 32 * bits // 8 + (
        0 if symmetric else 64 * 1
    )
    table = decoded(random(64, 32), BlockFormat(bits=bits, size=32, symmetric=symmetric), turned=True)
    ids = np.array([[3, 9, 63, 0]])
    np.testing.assert_allclose(session(made).run({"ids": ids})["y"], table[ids[0]] @ table.T, atol=1e-4)


@pytest.mark.parametrize(("bits", "symmetric"), SETTINGS)
@pytest.mark.parametrize(("width", "size"), [(96, 32), (80, 16), (48, 16)])
def test_a_table_is_looked_up_as_it_is_stored(bits, symmetric, width, size):
    """A width that the block does not divide gets a smaller block."""
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")
    table = random(50, width)
    model = proto([node], {"table": table}, inputs={"ids": ["B", "S"]}, ids=True)
    options = QuantizeOptions(
        scheme="int4-weight",
        algorithm="rtn",
        embeddings=f"int{bits}",
        symmetric=symmetric,
        include=(".",),
        block_size=32,
    )
    made, _ = quantized(model, options=options)
    assert operators(made)[-1] == "GatherBlockQuantized"
    back = decoded(table, BlockFormat(bits=bits, size=size, symmetric=symmetric), turned=True)
    got = session(made).run({"ids": np.arange(50)[None]})["y"][0]
    np.testing.assert_array_equal(got, back)


def test_a_table_that_no_block_divides_has_rows_of_int8():
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")
    model = proto([node], {"table": random(50, 36)}, inputs={"ids": ["B", "S"]}, ids=True)
    made, _ = quantized(model, options=QuantizeOptions(scheme="int4-weight", include=(".",)))
    assert operators(made) == ["Gather", "Gather", "Cast", "Mul"]


def test_scales_past_half_precision_are_stored_in_full():
    weight = random(32, 4) * np.float32(1e7)
    made, _ = quantized(
        proto(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], {"w": weight}, inputs={"x": [2, 32]}
        ),
        options=QuantizeOptions(scheme="int4-weight", include=(".",), embeddings="int4"),
    )
    assert operators(made) == ["MatMulNBits"]
    x = random(2, 32, seed=1)
    right = x @ weight
    assert np.abs(session(made).run({"x": x})["y"] - right).max() < 0.2 * np.abs(right).max()


def test_a_weight_that_is_not_finite_names_its_layer():
    weight = random(32, 8)
    weight[3, 3] = np.nan
    with pytest.raises(InputError, match="layer 'layer'"):
        decoded(weight, BlockFormat(bits=4))
