"""Static integers in standard operators, which ONNX Runtime fuses back into integer products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxkit.quantize.activations import Range
from onnxkit.quantize.codes.weights import channel_scales, codes
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.runtime import import_onnxruntime
from tests.quantize.graphs import cosine, operators, proto, quantized, random, session

X = {"x": ["batch_size", "sequence_length", 32]}
W, B = random(32, 48, scale=0.2), random(48, seed=1)
QDQ = QuantizeOptions(scheme="int8-static", format="qdq", calibration="random", include=(".",))

LINEAR = {
    "MatMul and Add": [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="n"),
        helper.make_node("Add", ["h", "b"], ["y"], name="n/bias"),
    ],
    "MatMul": [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")],
}


def ranges(**arrays: np.ndarray) -> dict[str, Range]:
    return {name: Range(low=float(a.min()), high=float(a.max())) for name, a in arrays.items()}


def fused(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The operators of the graph that ONNX Runtime runs."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "fused.onnx")
    runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return operators(onnx.load(folder / "fused.onnx"))


@pytest.mark.parametrize("case", LINEAR)
def test_products_are_standard_and_fused(case, tmp_path):
    x = random(3, 5, 32, seed=7)
    bias = B if "Add" in case else np.zeros(48, np.float32)
    weights = {"w": W, "b": B} if "Add" in case else {"w": W}
    made, _ = quantized(proto(LINEAR[case], weights, inputs=X), options=QDQ, ranges=ranges(x=x))
    assert {node.domain for node in made.graph.node} == {""}
    assert set(operators(made)) <= {"QuantizeLinear", "DequantizeLinear", "MatMul", "Add"}
    scales = channel_scales(W, 1, "paired", per_channel=True)
    scale, zero = ranges(x=x)["x"].parameters()
    around = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    right = around @ (codes(W, scales, 1) * scales) + bias
    np.testing.assert_allclose(session(made).run({"x": x})["y"], right, atol=1e-4)
    assert fused(made, tmp_path)[:2] == ["QuantizeLinear", "MatMulIntegerToFloat"]


def test_a_result_may_bear_the_name_that_a_product_gets():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["n:out.uncorrected"], name="n"),
        helper.make_node("Add", ["n:out.uncorrected", "b"], ["n:out"], name="n/correction"),
        helper.make_node("Relu", ["n:out"], ["y"], name="act"),
    ]
    x = random(3, 5, 32, seed=7)
    made, _ = quantized(proto(nodes, {"w": W, "b": B}, inputs=X), options=QDQ, ranges=ranges(x=x))
    assert cosine(session(made).run({"x": x})["y"], np.maximum(x @ W + B, 0)) > 0.999


def test_a_gemm_has_its_bias_in_integers_and_is_fused(tmp_path):
    x = random(6, 32, seed=7)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n", transB=1)
    model = proto([node], {"w": np.ascontiguousarray(W.T), "b": B}, inputs={"x": ["batch_size", 32]})
    made, _ = quantized(model, options=QDQ, ranges=ranges(x=x))
    assert cosine(session(made).run({"x": x})["y"], x @ W + B) > 0.999
    assert fused(made, tmp_path) == ["QuantizeLinear", "QGemm"]


def test_a_table_and_the_head_tied_to_it_are_stored_once(tmp_path):
    table, ids = random(400, 32, scale=0.2), np.arange(12, dtype=np.int64).reshape(3, 4)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embedding"),
        helper.make_node("Relu", ["x"], ["r"], name="act"),
        helper.make_node("Transpose", ["table"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["r", "t"], ["y"], name="head"),
    ]
    model = proto(nodes, {"table": table}, inputs={"ids": ["batch_size", "sequence_length"]}, ids=True)
    rows = np.maximum(table[ids], 0)
    made, _ = quantized(model, options=QDQ, ranges=ranges(r=rows))
    stored = [each for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert [list(each.dims) for each in stored if np.prod(each.dims) > 400] == [[400, 32]]
    assert {node.domain for node in made.graph.node} == {""}
    assert cosine(session(made).run({"ids": ids})["y"], rows @ table.T) > 0.999
    assert "MatMulIntegerToFloat" in fused(made, tmp_path)


def test_two_readers_share_the_pair():
    nodes = [helper.make_node("MatMul", ["x", w], [y], name=y) for w, y in (("w1", "a"), ("w2", "b"))]
    nodes.append(helper.make_node("Mul", ["a", "b"], ["y"], name="y"))
    x = random(2, 3, 32)
    made, _ = quantized(proto(nodes, {"w1": W, "w2": 2 * W}, inputs=X), options=QDQ, ranges=ranges(x=x))
    assert operators(made).count("QuantizeLinear") == 1


def test_convolutions_stay_near_the_float_ones(tmp_path):
    model = proto(
        [helper.make_node("Conv", ["x", "k", "b"], ["y"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1])],
        {"k": random(8, 3, 3, 3), "b": random(8, seed=2)},
        inputs={"x": ["batch_size", 3, "height", "width"]},
    )
    x = random(2, 3, 16, 12, seed=4)
    right = session(model).run({"x": x})["y"]
    made, _ = quantized(model, options=QDQ, ranges=ranges(x=x, y=right))
    assert {node.domain for node in made.graph.node} == {""}
    assert "Conv" in operators(made)
    assert cosine(session(made).run({"x": x})["y"], right) > 0.999
    assert "QLinearConv" in fused(made, tmp_path)
