"""Each operator's integer form against numpy's, and against the float graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxkit.graph import ort_cpu
from onnxkit.graph.files import load_model
from onnxkit.graph.lowering import lower
from onnxkit.quantize.activations import Range
from onnxkit.quantize.codes.weights import channel_scales, codes
from onnxkit.quantize.options import QuantizeOptions
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain
from tests.quantize.graphs import cosine, operators, proto, quantized, random, session

X = {"x": ["batch_size", "sequence_length", 32]}
W, B = random(32, 48, scale=0.2), random(48, seed=1)


def dynamic_codes(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """DynamicQuantizeLinear, as its specification says it."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero


def dynamic_product(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """What the integer graph must give for `x @ weight + bias`."""
    scales = channel_scales(weight, 1, "paired", per_channel=True)
    made, scale, zero = dynamic_codes(x)
    return ((made - zero) @ codes(weight, scales, 1).astype(float)) * scale * scales + bias


LINEAR = {
    "MatMul": ([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], {"w": W}, 0.0),
    "MatMul and Add": (
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
            helper.make_node("Add", ["b", "m"], ["y"], name="n/bias"),
        ],
        {"w": W, "b": B},
        B,
    ),
    "MatMul of a Transpose": (
        [
            helper.make_node("Transpose", ["w"], ["t"], name="t", perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"], name="n"),
        ],
        {"w": np.ascontiguousarray(W.T)},
        0.0,
    ),
    "FusedMatMul": (
        [helper.make_node("FusedMatMul", ["x", "w"], ["y"], name="n", domain="com.microsoft", transB=1)],
        {"w": np.ascontiguousarray(W.T)},
        0.0,
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_products_are_those_of_numpy(case):
    nodes, weights, bias = LINEAR[case]
    model, selection = quantized(proto(nodes, weights, inputs=X))
    assert [target.name for target in selection.targets] == ["n"]
    assert operators(model) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    assert model.graph.node[-1].name == "n"
    x = random(3, 5, 32, seed=7)
    np.testing.assert_allclose(session(model).run({"x": x})["y"], dynamic_product(x, W, bias), atol=1e-4)


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm_is_that_of_numpy(turned):
    weight = np.ascontiguousarray(W.T) if turned else W
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n", transB=turned)
    model, _ = quantized(proto([node], {"w": weight, "b": B}, inputs={"x": ["batch_size", 32]}))
    x = random(6, 32, seed=7)
    np.testing.assert_allclose(session(model).run({"x": x})["y"], dynamic_product(x, W, B), atol=1e-4)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert [list(t.dims) for name, t in stored.items() if "codes" in name] == [[32, 48]]


def test_a_following_addend_that_is_no_bias_stays():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
        helper.make_node("Add", ["m", "wide"], ["y"], name="add"),
    ]
    model, _ = quantized(proto(nodes, {"w": W, "wide": random(5, 48)}, inputs=X))
    assert operators(model)[-1] == "Add"


def test_a_product_read_twice_keeps_its_bias_apart():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
        helper.make_node("Add", ["m", "b"], ["y"], name="add"),
        helper.make_node("Neg", ["m"], ["z"], name="neg"),
    ]
    model, _ = quantized(proto(nodes, {"w": W, "b": B}, inputs=X, outputs=("y", "z")))
    x = random(2, 3, 32)
    found = session(model).run({"x": x})
    np.testing.assert_allclose(found["y"] + found["z"], np.broadcast_to(B, found["y"].shape), atol=1e-5)


def test_readers_of_one_value_share_its_codes():
    nodes = [helper.make_node("MatMul", ["x", w], [y], name=y) for w, y in (("w1", "a"), ("w2", "b"))]
    nodes.append(helper.make_node("Mul", ["a", "b"], ["y"], name="y"))
    model, _ = quantized(proto(nodes, {"w1": W, "w2": 2 * W}, inputs=X))
    assert operators(model).count("DynamicQuantizeLinear") == 1


def test_layers_of_one_weight_share_its_codes():
    square = random(32, 32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    model, _ = quantized(proto(nodes, {"w": square}, inputs=X))
    assert sum(list(tensor.dims) == [32, 32] for tensor in model.graph.initializer) == 1
    x = random(2, 3, 32)
    assert cosine(session(model).run({"x": x})["y"], x @ square @ square) > 0.999


def test_embeddings_keep_rare_rows_exact_to_their_own_scale():
    table = random(50, 16)
    table[7] *= 1e-3
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="words")
    ids = {"ids": ["batch_size", "sequence_length"]}
    model, _ = quantized(proto([node], {"table": table}, inputs=ids, ids=True))
    got = session(model).run({"ids": np.arange(50)[None]})["y"][0]
    assert (np.abs(got - table) <= np.abs(table).max(axis=1, keepdims=True) / 127 * 0.51).all()


def test_a_tied_table_is_stored_once():
    table = random(64, 32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["v"], name="words"),
        helper.make_node("Reshape", ["v", "flat"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "table"], ["y"], name="head", transB=1),
    ]
    weights = {"table": table, "flat": np.array([-1, 32])}
    float_model = proto(nodes, weights, inputs={"ids": ["batch_size", "sequence_length"]}, ids=True)
    model, _ = quantized(float_model)
    assert sum(numpy_helper.to_array(t).size == table.size for t in model.graph.initializer) == 1
    ids = {"ids": np.arange(12).reshape(2, 6)}
    right = table[ids["ids"].reshape(-1)] @ table.T
    assert cosine(session(model).run(ids)["y"], right) > 0.999


CONV = proto(
    [helper.make_node("Conv", ["x", "k", "b"], ["y"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1])],
    {"k": random(8, 3, 3, 3), "b": random(8, seed=2)},
    inputs={"x": ["batch_size", 3, "height", "width"]},
)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static"])
def test_convolutions_stay_near_the_float_ones(scheme):
    x = random(2, 3, 16, 12, seed=4)
    right = session(CONV).run({"x": x})["y"]
    ranges = {name: Range(low=float(a.min()), high=float(a.max())) for name, a in (("x", x), ("y", right))}
    options = QuantizeOptions(scheme=scheme, op_types=("Conv",))
    model, _ = quantized(CONV, options=options, ranges=ranges, grid="seven")
    assert ("QLinearConv" in operators(model)) == (scheme == "int8-static")
    assert cosine(session(model).run({"x": x})["y"], right) > 0.999


SPECS = {
    "primitives": (EncoderSpec(), False, set()),
    "packed": (EncoderSpec(), True, {"QAttention"}),
    "multi-head": (EncoderSpec(position_bias=True), True, {"MultiHeadAttention"}),
    "wide v": (EncoderSpec(v_size=16), True, {"MultiHeadAttention"}),
    "causal": (EncoderSpec(padding=False, causal=True), True, {"MultiHeadAttention"}),
    "rotary": (EncoderSpec(rotary=True), True, {"MultiHeadAttention"}),
}


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_encoders_stay_near_the_float_ones(tmp_path, case, side):
    spec, lowered, expected = SPECS[case]
    path = tmp_path / "model.onnx"
    save_plain(build_encoder(spec), path)
    graph = load_model(path)
    if lowered:
        lower(graph, ort_cpu.LOWERINGS)
    model, _ = quantized(graph)
    assert expected <= set(operators(model))
    assert "Attention" not in operators(model)
    given = feeds(3, 9, padding=side)
    before, after = session(onnx.load(path)), session(model)
    given = {spec.name: given[spec.name] for spec in before.inputs}
    right, got = (one.run(given)["last_hidden_state"] for one in (before, after))
    valid = given["attention_mask"].astype(bool) if "attention_mask" in given else slice(None)
    assert cosine(got[valid], right[valid]) > 0.995


@pytest.mark.parametrize("side", ["right", "left", "all", "none"])
def test_wide_vectors_get_the_same_by_the_standard_attention(tmp_path, side):
    """Three products and Attention for AVX-512: the numbers of QAttention, row by row of codes and scales."""
    save_plain(build_encoder(), tmp_path / "model.onnx")
    made = []
    for target in ("avx2", "avx512-vnni"):
        graph = load_model(tmp_path / "model.onnx")
        lower(graph, ort_cpu.LOWERINGS)
        made.append(quantized(graph, target=target)[0])
    fused, apart = made
    assert {"QAttention"} <= set(operators(fused)) and "QAttention" not in operators(apart)
    assert operators(apart).count("If") == 2  # with padding and without
    assert operators(apart).count("Expand") == 1  # one mask for both layers
    assert next(each.version for each in apart.opset_import if each.domain == "") == 23
    assert apart.ir_version >= 11
    given = feeds(3, 9, padding=side if side in ("right", "left") else "right")
    if side == "none":
        given["attention_mask"][:] = 1
    if side == "all":  # a row without any token
        given["attention_mask"][1] = 0
    given = {each.name: given[each.name] for each in session(fused).inputs}
    right, got = (session(each).run(given)["last_hidden_state"] for each in (fused, apart))
    np.testing.assert_allclose(got, right, atol=2e-5)


@pytest.mark.parametrize("causal", [0, 1])
def test_the_standard_attention_without_a_mask(causal):
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], name="n", domain="com.microsoft", num_heads=4, scale=0.3,
        unidirectional=causal,
    )  # fmt: skip
    model = proto([node], {"w": W, "b": B}, inputs=X)
    fused, apart = (quantized(model, target=target)[0] for target in ("avx2", "avx512-vnni"))
    assert operators(apart)[1:] == ["MatMulIntegerToFloat"] * 3 + ["Attention"]
    x = random(2, 5, 32, seed=7)
    right, got = (session(each).run({"x": x})["y"] for each in (fused, apart))
    np.testing.assert_allclose(got, right, atol=1e-5)


def test_attentions_own_products_are_kept_and_named(tmp_path):
    save_plain(build_encoder(), tmp_path / "model.onnx")
    model, selection = quantized(load_model(tmp_path / "model.onnx"))
    reasons = [layer.reason for layer in selection.kept if layer.op_type == "MatMul"]
    assert reasons == ["both sides are activations"] * 4
    assert operators(model).count("MatMul") == 4


REFUSED = {
    "left-transposed": helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transA=1),
    "scaled": helper.make_node("Gemm", ["x", "w"], ["y"], name="n", alpha=0.5),
    "scaled product": helper.make_node(
        "FusedMatMul", ["x", "w"], ["y"], name="n", domain="com.microsoft", alpha=0.5
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_integer_operator_cannot_say_stays_float(case):
    nodes = [REFUSED[case], helper.make_node("MatMul", ["y", "v"], ["z"], name="other")]
    weights = {"w": random(32, 32), "v": random(32, 32)}
    model, selection = quantized(proto(nodes, weights, inputs={"x": [32, 32]}, outputs=("z",)))
    assert [layer.name for layer in selection.kept] == ["n"]
    assert operators(model)[0] == REFUSED[case].op_type


def test_rows_have_scales_of_their_own():
    """A row a thousand times as large as another costs that one no bit; a row of zeros stays zero."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "b"], ["y"], name="layer/bias"),
    ]
    weight, bias = random(32, 8), random(8, seed=1)
    x = random(3, 32, seed=2) * np.array([[1.0], [1000.0], [0.0]], np.float32)
    model = proto(nodes, {"w": weight, "b": bias}, inputs={"x": ["S", 32]})
    made, _ = quantized(model, rows=True)
    right, got = x @ weight + bias, session(made).run({"x": x})["y"]
    for row in range(3):
        np.testing.assert_allclose(got[row], right[row], atol=0.03 * np.abs(right[row]).max())
    np.testing.assert_allclose(got[2], bias, atol=1e-6)


@pytest.mark.parametrize("read_twice", [False, True], ids=["gated", "gated, read twice"])
def test_a_gated_product_leaves_its_factor_to_the_next(read_twice):
    """Of `down(sigmoid(gate(x)) · up(x))` the factor of `up` is none of the graph's wide passes."""
    weights = {"g": random(8, 16), "u": random(8, 16, seed=1), "d": random(16, 8, seed=2)}
    weights["h"] = random(8, 8, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "g"], ["a"], name="gate"),
        helper.make_node("MatMul", ["x", "u"], ["b"], name="up"),
        helper.make_node("Sigmoid", ["a"], ["s"], name="act"),
        helper.make_node("Mul", ["s", "b"], ["m"], name="gated"),
        helper.make_node("MatMul", ["m", "d"], ["o"], name="down"),
        helper.make_node("MatMul", ["o", "h"], ["y"], name="head"),
    ]
    nodes += [helper.make_node("Neg", ["b"], ["z"], name="neg")] if read_twice else []
    model = proto(nodes, weights, inputs={"x": [3, 8]}, outputs=["y", "z"][: 1 + read_twice])
    made, _ = quantized(model, rows=True)
    x = random(3, 8, seed=3) * np.float32([[1], [1000], [0]])
    right, got = (session(each).run({"x": x}) for each in (model, made))
    for name, array in right.items():
        for row in range(3):
            np.testing.assert_allclose(got[name][row], array[row], atol=0.04 * np.abs(array[row]).max())
    wide = [node for node in made.graph.node if node.op_type == "Mul" and node.name == "up"]
    assert len(wide) == read_twice
