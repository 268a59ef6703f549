"""What the graph says of a layer's inputs, against running it on random data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.quantize.calibration.prior import prior_statistics
from onnxkit.quantize.input_statistics import InputStatistics
from onnxkit.quantize.rewrite import prepare
from onnxkit.quantize.smoothing.folding import linear_targets
from onnxkit.runtime import import_onnxruntime
from tests.quantize.graphs import mlp_dir, proto, random

Array = np.ndarray[Any, Any]

CONTRIB = "com.microsoft"
WIDTH = 32
ROWS = 4096


def by_graph(model: onnx.ModelProto) -> Mapping[str, InputStatistics]:
    graph = prepare(ir.from_proto(model), "graph")
    return prior_statistics(graph, linear_targets(graph))


def by_running(model: onnx.ModelProto, name: str, x: Array) -> Array:
    """The mean square of each channel of a value."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = import_onnxruntime().InferenceSession(
        exposed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    made = np.asarray(session.run([name], {session.get_inputs()[0].name: x})[0])
    found: Array = np.square(made.reshape(-1, made.shape[-1])).mean(axis=0)
    return found


def layer(*nodes: onnx.NodeProto, weights: Mapping[str, Array], read: str, depth: int) -> onnx.ModelProto:
    """x [B,S,32], nodes, and a product of what they make."""
    last = helper.make_node("MatMul", [read, "last"], ["y"], name="last")
    return proto(
        [*nodes, last], {**weights, "last": random(depth, 8)}, inputs={"x": ["batch", "sequence", WIDTH]}
    )


def agree(model: onnx.ModelProto, name: str, *, within: float = 0.1) -> None:
    """The mean squares are those of normal inputs, up to one factor."""
    found = by_graph(model)[name]
    right = by_running(model, name, random(1, ROWS, WIDTH, seed=9))
    ratios = found.mean_square / right
    assert found.count == 0 and found.mean.dtype == found.mean_square.dtype == np.float32
    np.testing.assert_allclose(ratios / np.median(ratios), 1, atol=within)


def norm(weights: dict[str, Array], *, bias: bool) -> list[onnx.NodeProto]:
    weights["gain"] = np.exp(random(WIDTH, seed=1))
    if not bias:
        return [helper.make_node("SimplifiedLayerNormalization", ["x", "gain"], ["h"], name="norm", axis=-1)]
    weights["shift"] = random(WIDTH, seed=2)
    return [helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["h"], name="norm", axis=-1)]


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_gives_gain_and_bias(bias: bool) -> None:
    weights: dict[str, Array] = {}
    nodes = norm(weights, bias=bias)
    agree(layer(*nodes, weights=weights, read="h", depth=WIDTH), "h")


def test_a_norm_of_plain_operators_is_one() -> None:
    weights = {"gain": np.exp(random(WIDTH, seed=1)), "two": np.float32(2), "eps": np.float32(1e-6)}
    axes = {"axes": np.array([-1], np.int64)}
    nodes = _plain([
        ("Pow", ["x", "two"], "p"), ("ReduceMean", ["p", "axes"], "m"), ("Add", ["m", "eps"], "e"),
        ("Sqrt", ["e"], "s"), ("Div", ["x", "s"], "d"), ("Mul", ["gain", "d"], "h"),
    ])  # fmt: skip
    model = layer(*nodes, weights={**{k: np.asarray(v) for k, v in weights.items()}, **axes},
                  read="h", depth=WIDTH)  # fmt: skip
    agree(model, "h")


def _plain(rows: Sequence[tuple[str, list[str], str]]) -> list[onnx.NodeProto]:
    return [helper.make_node(op, inputs, [output], name=output) for op, inputs, output in rows]


def test_a_gate_of_parts_of_one_packed_product() -> None:
    weights: dict[str, Array] = {"w": random(WIDTH, 96, scale=0.3), "bias": random(96, seed=4)}
    nodes = norm(weights, bias=False)
    nodes += _plain([("MatMul", ["h", "w"], "p"), ("Add", ["p", "bias"], "b")])
    nodes.append(helper.make_node("Split", ["b"], ["g", "u"], name="split", axis=-1, num_outputs=2))
    nodes += _plain([("Sigmoid", ["g"], "s"), ("Mul", ["g", "s"], "a"), ("Mul", ["a", "u"], "r")])
    model = layer(*nodes, weights=weights, read="r", depth=48)
    pair = by_graph(model)["r"].mean_square, by_running(model, "r", random(1, ROWS, WIDTH, seed=9))
    assert np.corrcoef(*np.log(pair))[0, 1] > 0.85  # two products of 32 channels are not independent


@pytest.mark.parametrize("op", ["Gelu", "Relu", "Tanh"])
def test_activations(op: str) -> None:
    weights: dict[str, Array] = {"w": random(WIDTH, 48, scale=0.3), "bias": random(48, seed=4)}
    nodes = [*norm(weights, bias=True), *_plain([("MatMul", ["h", "w"], "p"), ("Add", ["p", "bias"], "b")])]
    nodes.append(helper.make_node(op, ["b"], ["r"], name="act", domain=CONTRIB if op == "Gelu" else ""))
    agree(layer(*nodes, weights=weights, read="r", depth=48), "r", within=0.35)


def test_a_residual_stream_is_added_up() -> None:
    weights: dict[str, Array] = {"w": random(WIDTH, WIDTH), "gain2": np.ones(WIDTH, np.float32)}
    weights["w"][:, :4] *= 5  # what the layer adds to a few channels is large
    nodes = [*norm(weights, bias=True), *_plain([("MatMul", ["h", "w"], "p"), ("Add", ["x", "p"], "r")])]
    nodes.append(
        helper.make_node("SimplifiedLayerNormalization", ["r", "gain2"], ["n"], name="norm2", axis=-1)
    )
    model = layer(*nodes, weights=weights, read="n", depth=WIDTH)
    pair = by_graph(model)["n"].mean_square, by_running(model, "n", random(1, ROWS, WIDTH, seed=9))
    assert np.corrcoef(*np.log(pair))[0, 1] > 0.9  # what is added hangs together with what it is added to


def test_value_heads_are_repeated_for_the_query_heads() -> None:
    weights: dict[str, Array] = {"w": random(WIDTH, 64)}
    nodes = norm(weights, bias=False)
    nodes += _plain([("MatMul", ["h", "w"], "qkv")])
    nodes.append(
        helper.make_node(
            "GroupQueryAttention",
            ["qkv", "", "", "", "", "lengths", "total"],
            ["a"],
            name="attend",
            domain=CONTRIB,
            num_heads=4,
            kv_num_heads=2,
        )
    )
    model = layer(*nodes, weights=weights, read="a", depth=32)
    found = by_graph(model)["a"].mean_square.reshape(2, 2, 8)
    values = (weights["w"][:, 48:] ** 2 * weights["gain"][:, None] ** 2).sum(axis=0).reshape(2, 8)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_allclose(found[:, 0] / found.mean(), values / values.mean(), rtol=1e-4)


def test_portable_heads_are_repeated_too() -> None:
    """Values [B,S,2·8] -> [B,2,1,S,8], summed for 3 query heads each, laid side by side: [B,S,48]."""
    weights: dict[str, Array] = {"w": random(WIDTH, 16)}
    weights |= {
        "heads": np.array([0, 0, 2, 8]), "two": np.array([2]), "flat": np.array([0, 0, 48]),
    }  # fmt: skip
    nodes = [*norm(weights, bias=False), *_plain([
        ("MatMul", ["h", "w"], "v"), ("Reshape", ["v", "heads"], "v4"),
    ])]  # fmt: skip
    nodes.append(helper.make_node("Transpose", ["v4"], ["vt"], name="vt", perm=[0, 2, 1, 3]))
    nodes += _plain([("Unsqueeze", ["vt", "two"], "v5"), ("MatMul", ["probabilities", "v5"], "c")])
    nodes.append(helper.make_node("Transpose", ["c"], ["ct"], name="ct", perm=[0, 3, 1, 2, 4]))
    nodes += _plain([("Reshape", ["ct", "flat"], "r")])
    found = by_graph(layer(*nodes, weights=weights, read="r", depth=48))["r"].mean_square
    values = (weights["w"] ** 2 * weights["gain"][:, None] ** 2).sum(axis=0).reshape(2, 1, 8)
    right = np.repeat(values, 3, axis=1).reshape(-1)
    np.testing.assert_allclose(found / found.mean(), right / right.mean(), rtol=1e-4)


def test_what_the_graph_does_not_tell_is_left_out() -> None:
    nodes = _plain([("Sin", ["x"], "h")])
    assert by_graph(layer(*nodes, weights={}, read="h", depth=WIDTH)) == {}


def test_tables_tell_the_channels_of_what_they_hold() -> None:
    table = random(100, WIDTH) * np.exp(random(WIDTH, seed=1))
    nodes = _plain([("Gather", ["table", "x"], "e"), ("MatMul", ["e", "last"], "y")])
    model = proto(nodes, {"table": table, "last": random(WIDTH, 8)}, inputs={"x": ["b", "s"]}, ids=True)
    found = by_graph(model)["e"]
    np.testing.assert_allclose(found.mean_square, np.square(table).mean(axis=0), rtol=1e-4)


def test_four_bits_without_data_are_weighted_by_it(tmp_path: Path) -> None:
    """down reads Relu(up x): the report says so, and channels that are large are kept more exactly."""
    source = mlp_dir(tmp_path / "in")
    report = quantize_model(source, tmp_path / "out", QuantizeOptions(scheme="int4-weight", measure=False))
    formats = {each.name: each.format for each in report.quantized}
    assert formats["layer.down"].endswith("search, weighted by the graph")
    assert formats["layer.up"].endswith("search")
