"""Attention over a cache, norms and masks with a past, written out, against numpy by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.graph import portable, semantic
from onnxkit.graph.files import save_model, set_opset
from onnxkit.graph.names import name_by_module
from onnxkit.graph.regions import Region, annotate, find_regions
from onnxkit.runtime import RuntimeOptions, open_session
from tests.graph.semantic_graphs import Array, value

LOWEST = np.finfo(np.float32).min


def semantic_node(op: str, inputs: list[ir.Value | None], outputs: int = 1, **attributes: Any) -> ir.Node:
    node = ir.node(op, inputs, attributes=attributes, domain=semantic.DOMAIN, num_outputs=outputs)
    for number, out in enumerate(node.outputs):
        out.name, out.dtype = f"out_{number}", ir.DataType.FLOAT
    return node


def evaluated(
    nodes: list[ir.Node], inputs: list[ir.Value], feeds: dict[str, Array], directory: Path, opset: int = 18
) -> tuple[list[Array], list[Region]]:
    """Lower, annotate, find the regions again, run; the outputs of the last node."""
    graph = ir.Graph(
        inputs, nodes[-1].outputs, nodes=nodes, opset_imports={"": opset, semantic.DOMAIN: 1}, name="main"
    )
    model = ir.Model(graph, ir_version=10)
    regions = portable.lower(model, opset=opset)
    name_by_module(model)
    for region in regions:
        annotate(region)
    regions = find_regions(model)
    del model.opset_imports[semantic.DOMAIN]
    set_opset(model, opset)
    save_model(model, directory / "model.onnx")
    session = open_session(directory / "model.onnx", RuntimeOptions(threads=1))
    return list(session.run(feeds).values()), regions


def attention_by_definition(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    softcap: float,
    allowed: Array | None,
    bias: Array | None,
    sinks: Array | None,
) -> Array:
    """q `[B,H,S,D]`, k and v with all their keys → `[B,S,H,Dv]`."""
    times = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, times, axis=1), np.repeat(v, times, axis=1)
    scores = np.einsum("bhsd,bhtd->bhst", q.astype(np.float64), k) * scale
    scores = np.tanh(scores / softcap) * softcap if softcap else scores
    scores = scores if bias is None else scores + bias
    scores = scores if allowed is None else np.where(allowed, scores, LOWEST)
    if sinks is not None:
        column = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, column], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhst,bhtd->bshd", weights[..., : k.shape[2]], v)


def allowed_by_definition(padding: Array | None, rows: int, keys: int, window: int) -> Array:
    """Bool `[B|1,1,S,T]` of a causal mask whose last query sits at the last key."""
    query, key = np.arange(keys - rows, keys)[:, None], np.arange(keys)[None]
    see = (key <= query) & ((key > query - window) if window else True)
    full: Array = see[None, None]
    return full if padding is None else full & padding[:, None, None]


CASES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "rows": st.integers(1, 4),
        "past": st.integers(0, 5),
        "kv_heads": st.sampled_from([1, 2]),
        "group": st.sampled_from([1, 3]),
        "v_size": st.sampled_from([4, 6]),
        "window": st.sampled_from([0, 2]),
        "padded": st.booleans(),
        "softcap": st.sampled_from([0.0, 2.0]),
        "sinks": st.booleans(),
        "bias_heads": st.sampled_from([0, 1, 2]),
        "dense": st.booleans(),
        "opset": st.sampled_from([18, 23]),
    }
)


@settings(max_examples=40, deadline=None)
@given(case=CASES, seed=st.integers(0, 99))
def test_cached_attention(case: dict[str, Any], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(seed)
    batch, rows, past, window = (case[name] for name in ("batch", "rows", "past", "window"))
    kv_heads, heads, size = case["kv_heads"], case["kv_heads"] * case["group"], 4
    keys = past + rows

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    shapes = {"q": (heads, size), "k": (kv_heads, size), "v": (kv_heads, case["v_size"])}
    new = {name: normal(batch, h, rows, d) for name, (h, d) in shapes.items()}
    old = {f"past_{n}": normal(batch, kv_heads, past, shapes[n][1]) for n in "kv"}
    padding = rng.random((batch, keys)) > 0.3 if case["padded"] else None
    bias = normal(batch, (0, 1, heads)[case["bias_heads"]], rows, keys) if case["bias_heads"] else None
    sinks = normal(heads) if case["sinks"] else None

    nodes: list[ir.Node] = []
    inputs, feeds, qkv = _queries(nodes, new, shapes, dense=case["dense"])
    counts = {"queries": np.array(rows), "keys": np.array(keys), "batch": np.array(batch)}
    more = {**old, **({"padding": padding} if padding is not None else {}), **counts}
    more |= {n: x for n, x in (("bias", bias), ("sinks", sinks)) if x is not None}
    free = {"past_k": (0, 2), "past_v": (0, 2), "padding": (0, 1), "bias": (0, 2, 3)}
    given_values = {name: value(name, array, free.get(name, ())) for name, array in more.items()}
    role = given_values.get
    mask = semantic_node(
        semantic.MASK, [role(n) for n in ("padding", "batch", "queries", "keys")], causal=1, window=window
    )
    mask.outputs[0].name, mask.outputs[0].dtype = "mask", ir.DataType.BOOL
    rest = [role("past_k"), role("past_v"), mask.outputs[0], role("bias"), role("sinks")]
    node = semantic_node(semantic.CACHED_ATTENTION, [*qkv, *rest], 3, scale=0.4, softcap=case["softcap"])
    node.outputs[0].shape = ir.Shape(["b", "s", heads, case["v_size"]])
    used = {n: v for n, v in given_values.items() if v.uses() or n in ("queries", "keys")}
    got, regions = evaluated(
        [*nodes, mask, node],
        [*inputs, *used.values()],
        {**feeds, **{n: more[n] for n in used}},
        tmp_path_factory.mktemp("attention"),
        case["opset"],
    )
    k, v = (np.concatenate([old[f"past_{n}"], new[n]], axis=2) for n in "kv")
    allowed = allowed_by_definition(padding, rows, keys, window)
    expected = attention_by_definition(
        new["q"], k, v, scale=0.4, softcap=case["softcap"], allowed=allowed, bias=bias, sinks=sinks
    )
    sees = np.broadcast_to(allowed, (batch, 1, rows, keys)).any(axis=-1)[:, 0]  # other rows are noise
    np.testing.assert_allclose(got[0][sees], expected[sees], atol=2e-5)
    np.testing.assert_array_equal(got[1], k)
    np.testing.assert_array_equal(got[2], v)
    [attention] = [region for region in regions if region.op == "attention"]
    assert attention.attrs["layout"] == ("bsh" if case["dense"] else "bhsd")
    assert list(attention.outputs) == ["out", "present_key", "present_value"]
    wanted = {"q", "k", "v", "past_key", "past_value", "mask"}
    wanted |= {name for name, x in (("bias", bias), ("sinks", sinks)) if x is not None}
    assert set(attention.inputs) == wanted


def _queries(
    nodes: list[ir.Node], new: dict[str, Array], shapes: dict[str, tuple[int, int]], *, dense: bool
) -> tuple[list[ir.Value], dict[str, Array], list[ir.Value | None]]:
    """q, k and v as `[B,H,S,D]` values, fed that way or (`dense`) behind a Reshape and a Transpose."""
    if not dense:
        inputs = [value(name, array, (0, 2)) for name, array in new.items()]
        holders: list[ir.Value | None] = []
        for given_value in inputs:  # a graph input would be taken for an encoder's cached keys
            node = ir.node("Identity", [given_value])
            node.outputs[0].shape, node.outputs[0].dtype = given_value.shape, ir.DataType.FLOAT
            nodes.append(node)
            holders.append(node.outputs[0])
        return inputs, dict(new), holders
    feeds = {
        name: np.ascontiguousarray(a.transpose(0, 2, 1, 3)).reshape(a.shape[0], a.shape[2], -1)
        for name, a in new.items()
    }
    inputs = [value(name, array, (0, 1)) for name, array in feeds.items()]
    split: list[ir.Value | None] = []
    for given_value in inputs:
        heads, size = shapes[str(given_value.name)]
        target = ir.node(
            "Constant", [], attributes={"value": ir.tensor(np.array([0, 0, heads, size], dtype=np.int64))}
        )
        parts = ir.node("Reshape", [given_value, target.outputs[0]])
        swap = ir.node("Transpose", parts.outputs, attributes={"perm": [0, 2, 1, 3]})
        swap.outputs[0].dtype = ir.DataType.FLOAT
        swap.outputs[0].shape = ir.Shape(["b", heads, "s", size])
        nodes += [target, parts, swap]
        split.append(swap.outputs[0])
    return inputs, feeds, split


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset: float, opset: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 8)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    given_x = value("x", x, (0, 1))
    parameter = ir.Value(name="norm.weight", const_value=ir.tensor(weight), shape=ir.Shape([8]))
    parameter.dtype = ir.DataType.FLOAT
    node = semantic_node(semantic.RMS_NORM, [given_x, parameter], epsilon=1e-5, offset=offset)
    graph = ir.Graph(
        [given_x], node.outputs, nodes=[node], initializers=[parameter],
        opset_imports={"": opset, semantic.DOMAIN: 1}, name="main",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    [region] = portable.lower(model, opset=opset)
    assert (region.op, region.attrs["epsilon"]) == ("rms_norm", pytest.approx(1e-5))
    stored = region.inputs["weight"]
    assert stored is not None
    assert stored.const_value is not None
    np.testing.assert_allclose(stored.const_value.numpy(), weight + offset)
    del model.opset_imports[semantic.DOMAIN]
    set_opset(model, opset)
    save_model(model, tmp_path / "model.onnx")
    [got] = open_session(tmp_path / "model.onnx", RuntimeOptions(threads=1)).run({"x": x}).values()
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * (weight + offset)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_experts(transposed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((7, 4), (5, 3, 4)))
    experts = np.array([4, 0, 0, 2, 4, 4, 0])  # experts 1 and 3 have no rows
    stored = np.ascontiguousarray(weight.transpose(0, 2, 1)) if transposed else weight
    inputs = [value("x", x, (0,)), value("weight", stored), value("experts", experts, (0,))]
    node = semantic_node(semantic.EXPERT_MATMUL, list(inputs), transposed=int(transposed))
    feeds = {"x": x, "weight": stored, "experts": experts}
    [got], regions = evaluated([node], inputs, feeds, tmp_path)
    assert regions == []
    np.testing.assert_allclose(got, np.einsum("mk,mnk->mn", x, weight[experts]), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_last_rows(count: int, tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.float32).reshape(2, 5, 4)
    inputs = [value("x", x, (0, 1)), value("count", np.array(count))]
    node = semantic_node(semantic.LAST_ROWS, list(inputs))
    [got], _ = evaluated([node], inputs, {"x": x, "count": np.array(count)}, tmp_path)
    np.testing.assert_array_equal(got, x[:, -count:])
