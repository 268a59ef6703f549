from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError
from onnxkit.safety import read_model

Write = Callable[[onnx.ModelProto], Path]
_OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]


def _model(
    node: onnx.NodeProto, tensors: dict[str, np.ndarray[Any, Any]], before: Any = ()
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*before, node],
        "g",
        [value("x", TensorProto.FLOAT, ["b", 40])],
        [value("y", TensorProto.FLOAT, ["b", 8])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=10)


def _matmul(**attributes: int) -> onnx.NodeProto:
    settings = {"K": 40, "N": 8, "bits": 4, "block_size": 32, **attributes}
    inputs = ["x", "w", "scales", "zeros"]
    return helper.make_node("MatMulNBits", inputs, ["y"], name="head", domain="com.microsoft", **settings)


def _weights(bits: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "w": np.zeros((8, 2, 32 * bits // 8), np.uint8),
        "scales": np.ones((8, 2), np.float32),
        "zeros": np.zeros((8, -(-2 * bits // 8)), np.uint8),
    }


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_fits_is_accepted(write: Write, bits: int) -> None:
    assert read_model(write(_model(_matmul(bits=bits), _weights(bits))))


@pytest.mark.parametrize(
    "attributes",
    [
        {"K": 4000}, {"N": 9}, {"K": 0}, {"N": -8}, {"bits": 8}, {"bits": 3}, {"block_size": 16},
        {"block_size": 33},
        {"block_size": 0}, {"K": 2**62}, {"block_size": -32},
    ],
)  # fmt: skip
def test_attributes_that_overstate_the_weight_are_refused(write: Write, attributes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="MatMulNBits 'head'"):
        read_model(write(_model(_matmul(**attributes), _weights())))


@pytest.mark.parametrize("name", ["w", "scales", "zeros"])
def test_each_short_tensor_is_refused(write: Write, name: str) -> None:
    weights = _weights()
    weights[name] = weights[name][:-1]
    with pytest.raises(InputError, match="attributes say"):
        read_model(write(_model(_matmul(), weights)))


def test_a_short_tensor_behind_a_cast_is_seen(write: Write) -> None:
    """Scales in fp16 behind a Cast are folded when the session loads, so they count as well."""
    weights = _weights()
    weights["scales16"] = weights.pop("scales").astype(np.float16)
    cast = helper.make_node("Cast", ["scales16"], ["scales"], to=TensorProto.FLOAT)
    assert read_model(write(_model(_matmul(), weights, [cast])))
    weights["scales16"] = weights["scales16"][:-1]
    with pytest.raises(InputError, match="scales"):
        read_model(write(_model(_matmul(), weights, [cast])))


def test_a_weight_from_an_outer_graph_is_seen_from_a_branch(write: Write) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 8])
    branch = helper.make_graph([_matmul(K=4000)], "branch", [], [value])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    with pytest.raises(InputError, match="weight"):
        read_model(write(_model(node, _weights())))


def test_a_function_cannot_hide_the_weight(write: Write) -> None:
    model = _model(helper.make_node("hidden", ["x", "w", "scales", "zeros"], ["y"], domain="f"), _weights())
    function = helper.make_function("f", "hidden", ["x", "w", "scales", "zeros"], ["y"], [_matmul()], _OPSETS)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("f", 1))
    with pytest.raises(InputError, match="stands in a function"):
        read_model(write(model))


def _gather(**attributes: int) -> onnx.NodeProto:
    settings = {"bits": 4, "block_size": 16, "quantize_axis": 1, **attributes}
    inputs = ["table", "x", "scales", "zeros"]
    return helper.make_node("GatherBlockQuantized", inputs, ["y"], domain="com.microsoft", **settings)


def _table() -> dict[str, np.ndarray[Any, Any]]:
    """10 rows of 40 values, two a byte, in blocks of 16: 3 scales a row, zero points 2 bytes a row."""
    return {
        "table": np.zeros((10, 20), np.uint8),
        "scales": np.ones((10, 3), np.float32),
        "zeros": np.zeros((10, 2), np.uint8),
    }


def test_a_quantized_table_is_accepted(write: Write) -> None:
    assert read_model(write(_model(_gather(), _table())))


@pytest.mark.parametrize("attributes", [{"block_size": 32}, {"bits": 8}, {"quantize_axis": 2}, {"bits": 5}])
def test_a_table_that_does_not_fit_is_refused(write: Write, attributes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="GatherBlockQuantized"):
        read_model(write(_model(_gather(**attributes), _table())))


@pytest.mark.parametrize("name", ["table", "scales", "zeros"])
def test_short_tables_are_refused(write: Write, name: str) -> None:
    table = _table()
    table[name] = table[name][:-1]
    with pytest.raises(InputError, match="GatherBlockQuantized"):
        read_model(write(_model(_gather(), table)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 128])
def test_what_onnxruntime_packs_is_accepted(
    write: Write, bits: int, symmetric: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent reference: ONNX Runtime's own quantizer decides how many bytes there are."""
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Gather", ["e", "i"], ["x"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    tensors = [
        numpy_helper.from_array(np.linspace(-1, 1, 20 * 40, dtype=np.float32).reshape(20, 40), "e"),
        numpy_helper.from_array(np.linspace(-1, 1, 40 * 24, dtype=np.float32).reshape(40, 24), "w"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("i", TensorProto.INT64, ["b"])],
        [value("y", TensorProto.FLOAT, ["b", 24])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    config = quantizer.DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=symmetric, bits=bits, op_types_to_quantize=("MatMul", "Gather")
    )
    worker = quantizer.MatMulNBitsQuantizer(model, algo_config=config)
    worker.process()
    packed = read_model(write(worker.model.model))
    assert "MatMulNBits" in {node.op_type for node in packed.graph.node}
