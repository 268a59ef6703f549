"""`inspect` on small graphs whose contents are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError
from onnxkit.measure.inspect import inspect_model
from onnxkit.quantize import QuantizeOptions
from onnxkit.report import to_plain
from tests import expert_graphs
from tests.encoder_graphs import WIDTH, EncoderSpec, build_encoder, save_plain
from tests.quantize.graphs import quantized


def model_of(path: Path, nodes, tensors, *, opset: int = 21) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch_size", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [
        t if isinstance(t, onnx.TensorProto) else numpy_helper.from_array(t, n) for n, t in tensors.items()
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(
        graph, opset_imports=opsets, ir_version=10, producer_name="tool", producer_version="3"
    )
    onnx.save(proto, path)
    return path


def only(path: Path):
    (component,) = inspect_model(path).components
    return component


def test_a_dense_model(tmp_path):
    tensors = {"w": np.ones((64, 8), np.float32), "b": np.ones(8, np.float32), "s": np.array([0, -1])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Reshape", ["c", "s"], ["y"]),
    ]
    found = only(model_of(tmp_path / "m.onnx", nodes, tensors))
    assert found.parameters == 64 * 8 + 8
    assert found.bytes_by_dtype == {"float32": (64 * 8 + 8) * 4, "int64": 16}
    assert found.bytes_by_operator == {"MatMul": 64 * 8 * 4, "Add": 32, "Reshape": 16}
    assert found.nodes_by_type == {"MatMul": 1, "Add": 1, "Reshape": 1}
    assert found.opsets == {"ai.onnx": 21, "com.microsoft": 1}
    assert (found.ir_version, found.producer) == (10, "tool 3")
    assert found.inputs[0].shape == ("batch_size", 64)
    assert (found.quantized.linear_nodes, found.quantized.nodes, found.quantized.share) == (1, 0, 0.0)
    assert found.fused == {}


def test_dynamic_int8(tmp_path):
    tensors = {
        "w": np.ones((64, 8), np.int8), "ws": np.ones(8, np.float32), "wz": np.zeros(8, np.int8),
        "v": np.ones((8, 24), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], ["a"], domain="com.microsoft"),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    found = only(model_of(tmp_path / "m.onnx", nodes, tensors))
    assert found.parameters == 64 * 8 + 8 * 24  # scales and zero points are none
    assert (found.quantized.nodes, found.quantized.linear_nodes) == (1, 2)
    assert found.quantized.share == pytest.approx(64 * 8 / (64 * 8 + 8 * 24))
    assert found.fused == {"DynamicQuantizeMatMul": 1}
    assert found.nodes_by_type["com.microsoft.DynamicQuantizeMatMul"] == 1


def test_a_qdq_weight_counts_for_the_product_behind_it(tmp_path):
    tensors = {"w": np.ones((64, 8), np.int8), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    found = only(model_of(tmp_path / "m.onnx", nodes, tensors))
    assert found.bytes_by_operator["MatMul"] == 64 * 8
    assert found.quantized.share == 1.0
    assert found.parameters == 64 * 8


def test_four_bits_packed_in_bytes_count_as_values(tmp_path):
    tensors = {
        "w": np.zeros((8, 2, 16), np.uint8), "s": np.ones(16, np.float32), "z": np.zeros(8, np.uint8)
    }  # fmt: skip
    attributes = {"K": 64, "N": 8, "bits": 4, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", "w", "s", "z"], ["y"], domain="com.microsoft", **attributes)
    found = only(model_of(tmp_path / "m.onnx", [node], tensors))
    assert found.parameters == 64 * 8
    assert found.quantized.linear_parameters == 64 * 8
    assert found.quantized.share == 1.0
    assert found.bytes_by_dtype["uint8"] == 8 * 2 * 16 + 8


def test_weights_in_constant_nodes_are_weights(tmp_path):
    """As paddle2onnx and torch's older exporter write them."""
    weight = numpy_helper.from_array(np.ones((64, 8), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    found = only(model_of(tmp_path / "m.onnx", nodes, {}))
    assert (found.parameters, found.weight_bytes) == (512, 2048)
    assert found.bytes_by_operator == {"MatMul": 2048}
    assert (found.quantized.linear_nodes, found.quantized.nodes) == (1, 0)


def test_integers_that_are_cast_and_scaled_are_quantized_weights(tmp_path):
    """A layout that hand-made weight-only files have: no DequantizeLinear, older runtimes read it."""
    tensors = {"q": np.ones((64, 8), np.int8), "scale": np.ones((1, 8), np.float32)}
    nodes = [
        helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="dense"),
    ]
    found = only(model_of(tmp_path / "m.onnx", nodes, tensors))
    assert found.parameters == 512
    assert found.bytes_by_operator == {"MatMul": 512, "Mul": 32}
    assert (found.quantized.nodes, found.quantized.linear_nodes) == (1, 1)
    assert (found.quantized.layers, found.quantized.bits_per_weight) == ({"dense": 8}, 8.5)


@pytest.mark.parametrize(("scheme", "bits"), [("log8", 8), ("log4", 4)])
def test_logarithmic_codes_are_quantized_weights(scheme, bits, tmp_path):
    model = build_encoder(EncoderSpec())
    save_plain(model, tmp_path / "float.onnx")
    onnx.save(
        quantized(model, options=QuantizeOptions(scheme=scheme, include=(".",)))[0], tmp_path / "m.onnx"
    )
    before, found = only(tmp_path / "float.onnx"), only(tmp_path / "m.onnx")
    assert found.quantized.nodes == found.quantized.linear_nodes == before.quantized.linear_nodes
    assert set(found.quantized.layers.values()) == {bits}
    assert found.quantized.parameters == before.quantized.linear_parameters
    assert found.quantized.bits_per_weight == bits + 0.5  # a float16 scale for 32
    assert found.parameters == before.parameters


def test_a_shared_weight_counts_once(tmp_path):
    tensors = {"w": np.ones((64, 64), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    found = only(model_of(tmp_path / "m.onnx", nodes, tensors))
    assert found.parameters == found.quantized.linear_parameters == 64 * 64
    assert found.quantized.linear_nodes == 2


def test_nodes_and_weights_of_subgraphs_are_seen(tmp_path):
    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.ones((64, 4), np.float32), f"{name}.w")
        node = helper.make_node("MatMul", ["x", f"{name}.w"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, None)], [weight])

    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"))]
    found = only(model_of(tmp_path / "m.onnx", nodes, {"c": np.array(True)}))
    assert found.parameters == 2 * 64 * 4
    assert found.nodes_by_type == {"MatMul": 2, "If": 1}


@pytest.mark.parametrize("scheme", [None, "int4-weight"])
def test_experts_are_linear_weights(scheme, tmp_path):
    """A loop's body reads them, from the graph around it."""
    model = expert_graphs.experts(transposed=False)
    if scheme is not None:
        model, _ = quantized(model, options=QuantizeOptions(scheme=scheme, include=(".",)))
    onnx.save(model, tmp_path / "m.onnx")
    found = only(tmp_path / "m.onnx")
    assert found.quantized.linear_nodes == 1
    rows = expert_graphs.EXPERTS * expert_graphs.WIDTH
    stored = rows * (expert_graphs.DEPTH if scheme is None else 64)  # two whole blocks of 32
    assert found.parameters == found.quantized.linear_parameters == stored
    assert found.quantized.share == (0.0 if scheme is None else 1.0)


def test_regions_are_counted(tmp_path):
    save_plain(build_encoder(EncoderSpec(rotary=True)), tmp_path / "m.onnx")
    found = only(tmp_path / "m.onnx")
    assert found.regions == {"rotary": 4, "attention": 2, "gelu": 2, "mask": 1}
    assert found.bytes_by_operator["Gather"] == 150 * WIDTH * 4


def test_external_data_is_counted_without_being_read(tmp_path):
    tensors = {"w": np.ones((64, 8), np.float32)}
    proto = onnx.load(model_of(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], tensors))
    (tmp_path / "d").mkdir()
    onnx.save(
        proto,
        tmp_path / "d/model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    report = inspect_model(tmp_path / "d")
    assert report.components[0].weight_bytes == 64 * 8 * 4
    assert set(report.files) == {"model.onnx", "model.onnx_data"}
    assert report.history == ()
    assert report.verified is None


def test_the_report_is_plain_json(tmp_path):
    save_plain(build_encoder(), tmp_path / "m.onnx")
    plain = json.loads(json.dumps(to_plain(inspect_model(tmp_path / "m.onnx"))))
    assert plain["components"][0]["inputs"][0]["name"] == "input_ids"


def test_what_is_no_model_is_an_input_error(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(InputError):
        inspect_model(tmp_path / "m.onnx")


def test_inspecting_imports_no_graph_library():
    code = (
        "import sys, onnxkit.measure.inspect; "
        "print(sorted({'onnx_ir', 'onnxscript', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
