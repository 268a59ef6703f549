"""Each semantic operator, written out as primitives, against a numpy computation of its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.graph import semantic
from onnxkit.graph.portable import lowest
from onnxkit.graph.regions import find_regions
from tests.graph.semantic_graphs import Array, lowered, run, value

RNG = np.random.default_rng(0)
_erf = np.vectorize(math.erf)


def semantic_node(op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Node:
    return ir.node(op, inputs, attributes=attributes, domain=semantic.DOMAIN)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str, tmp_path: Path) -> None:
    x = normal(3, 50) * 3
    given_x = value("x", x)
    node = semantic_node(semantic.GELU, [given_x], approximate=approximate)
    node.outputs[0].dtype = ir.DataType.FLOAT
    model, (region,) = lowered([node], [given_x], node.outputs[0])
    if approximate == "none":
        expected = x * 0.5 * (1 + _erf(x / math.sqrt(2)))
    else:
        expected = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path), expected, atol=1e-6)
    assert region.attrs == {"approximate": approximate}


def allowed_by_definition(padding: Array | None, rows: int, causal: bool, window: int) -> Array:
    query, key = np.arange(rows)[:, None], np.arange(rows)[None]
    see = np.ones((rows, rows), dtype=bool)
    if causal:
        see &= key <= query
        if window:
            see &= key > query - window
    elif window:
        see &= abs(key - query) <= window
    full = see[None, None]
    return full if padding is None else full & padding[:, None, None]


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 7),
    causal=st.booleans(),
    window=st.integers(0, 4),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mask(
    rows: int, causal: bool, window: int, padded: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not (padded or causal or window):
        return
    padding = np.random.default_rng(seed).random((2, rows)) > 0.4
    batch, number = np.array(2), np.array(rows)
    values = [value("padding", padding, (0, 1)), value("batch", batch), value("rows", number)]
    inputs = [values[0] if padded else None, values[1], values[2], values[2]]
    mask = semantic_node(semantic.MASK, inputs, causal=int(causal), window=window)
    x = value("x", normal(2, 1, rows, rows), (0, 2, 3))
    add = ir.node("Where", [mask.outputs[0], x, x])  # a user that reads the mask as booleans
    mask.outputs[0].dtype = ir.DataType.BOOL
    cast = ir.node("Cast", [mask.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].dtype = ir.DataType.FLOAT
    model, regions = lowered([mask, cast], values, cast.outputs[0])
    del add
    feeds = {"padding": padding, "batch": batch, "rows": number}
    taken = {v.name: feeds[str(v.name)] for v in model.graph.inputs}
    got = run(model, taken, tmp_path_factory.mktemp("mask")) > 0
    expected = allowed_by_definition(padding if padded else None, rows, causal, window)
    np.testing.assert_array_equal(np.broadcast_to(got, expected.shape), expected)
    assert regions[0].attrs == {"causal": causal, "window": window}


def attention_by_definition(
    q: Array, k: Array, v: Array, scale: float, allowed: Array | None, bias: Array | None
) -> Array:
    times = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, times, axis=1), np.repeat(v, times, axis=1)
    scores = np.einsum("bhsd,bhtd->bhst", q.astype(np.float64), k) * scale
    scores = scores if bias is None else scores + bias
    scores = scores if allowed is None else np.where(allowed, scores, np.finfo(np.float32).min)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhst,bhtd->bshd", weights, v)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dense", [True, False], ids=["bsh", "bhsd"])
@pytest.mark.parametrize("masked", ["none", "mask", "mask and bias"])
def test_attention(kv_heads: int, dense: bool, masked: str, tmp_path: Path) -> None:
    batch, rows, heads, size, v_size = 2, 5, 4, 8, 6
    shapes = {"q": (heads, size), "k": (kv_heads, size), "v": (kv_heads, v_size)}
    arrays = {name: normal(batch, rows, h * d) for name, (h, d) in shapes.items()}
    per_head = {n: a.reshape(batch, rows, *shapes[n]).transpose(0, 2, 1, 3) for n, a in arrays.items()}
    feeds: dict[str, Array] = arrays if dense else {n: np.ascontiguousarray(a) for n, a in per_head.items()}
    inputs = [value(name, array, (0, 1) if dense else (0, 2)) for name, array in feeds.items()]
    nodes: list[ir.Node] = []
    heads_first: list[ir.Value | None] = [
        split_heads(nodes, x, *shapes[str(x.name)]) if dense else x for x in inputs
    ]
    allowed = bias = None
    if masked != "none":
        padding = np.array([[True] * 5, [False, False, True, True, True]])
        feeds["padding"], allowed = padding, padding[:, None, None]
        inputs.append(value("padding", padding, (0, 1)))
        number = ir.Value(name="n", const_value=ir.tensor(np.array(rows)), shape=ir.Shape([]))
        number.dtype = ir.DataType.INT64
        nodes.append(semantic_node(semantic.MASK, [inputs[-1], number, number, number], causal=0, window=0))
        heads_first.append(nodes[-1].outputs[0])
    if masked == "mask and bias":
        bias = feeds["bias"] = normal(1, heads, rows, rows)
        inputs.append(value("bias", bias))
        heads_first.append(inputs[-1])
    node = semantic_node(semantic.ATTENTION, heads_first, scale=0.3)
    node.outputs[0].dtype = ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape(["b", "s", heads, v_size])
    model, regions = lowered([*nodes, node], inputs, node.outputs[0])
    expected = attention_by_definition(*(per_head[n] for n in "qkv"), 0.3, allowed, bias)
    np.testing.assert_allclose(run(model, feeds, tmp_path), expected, atol=1e-5)
    attention = next(region for region in regions if region.op == "attention")
    assert attention.attrs["layout"] == ("bsh" if dense else "bhsd")
    assert attention.attrs["kv_num_heads"] == kv_heads
    assert {region.op for region in find_regions(model)} == {region.op for region in regions}


def split_heads(nodes: list[ir.Node], x: ir.Value, heads: int, size: int) -> ir.Value:
    """Transpose(Reshape(x)), as modeling code has it."""
    target = ir.Value(name=f"{x.name}_target", const_value=ir.tensor(np.array([0, 0, heads, size])))
    target.shape, target.dtype = ir.Shape([4]), ir.DataType.INT64
    constant = ir.node("Constant", [], attributes={"value": target.const_value})
    split = ir.node("Reshape", [x, constant.outputs[0]])
    swap = ir.node("Transpose", split.outputs, attributes={"perm": [0, 2, 1, 3]})
    swap.outputs[0].dtype = ir.DataType.FLOAT
    swap.outputs[0].shape = ir.Shape(["b", heads, "s", size])
    nodes += [constant, split, swap]
    return swap.outputs[0]


@pytest.mark.parametrize("dense", [True, False], ids=["bsh", "bhsd"])
def test_rotary(dense: bool, tmp_path: Path) -> None:
    batch, rows, heads, size = 2, 5, 3, 8
    x, angle = normal(batch, rows, heads * size), normal(1, rows, size // 2)
    angles = np.concatenate([angle, angle], axis=-1)
    feeds = {"x": x, "cos": np.cos(angles), "sin": np.sin(angles)}
    per_head = x.reshape(batch, rows, heads, size).transpose(0, 2, 1, 3)
    if not dense:
        feeds["x"] = np.ascontiguousarray(per_head)
    inputs = [
        value("x", feeds["x"], (0, 1) if dense else (0, 2)),
        value("cos", feeds["cos"]),
        value("sin", feeds["sin"]),
    ]
    nodes: list[ir.Node] = []
    source = split_heads(nodes, inputs[0], heads, size) if dense else inputs[0]
    node = semantic_node(semantic.ROTARY, [source, *inputs[1:]])
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, source.shape
    model, (region,) = lowered([*nodes, node], inputs, node.outputs[0])
    pairs = per_head[..., : size // 2] + 1j * per_head[..., size // 2 :]  # a rotation is a complex product
    turned = pairs * np.exp(1j * angle[:, None])
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(run(model, feeds, tmp_path), expected, atol=1e-5)
    assert (region.attrs["layout"], region.attrs["interleaved"]) == ("bsh" if dense else "bhsd", False)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_masked_score_stays_finite_and_weighs_nothing(dtype: ir.DataType) -> None:
    low = np.array(lowest(dtype)).astype(dtype.numpy())
    shifted = low + np.array(-60.0).astype(dtype.numpy())
    assert np.isfinite(low.astype(np.float64))
    assert np.isfinite(shifted.astype(np.float64))
    assert np.exp(shifted.astype(np.float32)) == 0


def test_a_norm_before_a_rotation_is_named_as_it_stands_in_the_file() -> None:
    """Norms are written out after rotations: the rotation's region must not name the value that went."""
    x, weight, cos, sin = normal(1, 2, 3, 8), normal(8), normal(1, 3, 8), normal(1, 3, 8)
    inputs = [value(name, array) for name, array in zip("xwcs", (x, weight, cos, sin), strict=True)]
    norm = semantic_node(semantic.RMS_NORM, inputs[:2], epsilon=1e-6, offset=0.0)
    norm.outputs[0].shape, norm.outputs[0].dtype = inputs[0].shape, ir.DataType.FLOAT
    turn = semantic_node(semantic.ROTARY, [norm.outputs[0], *inputs[2:]])
    model, regions = lowered([norm, turn], inputs, turn.outputs[0])
    assert {region.op for region in regions} == {"rms_norm", "rotary"}
    found = {region.op: region for region in find_regions(model)}
    assert found["rotary"].inputs["x"] is found["rms_norm"].outputs["out"]
