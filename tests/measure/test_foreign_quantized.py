"""Models that other tools quantized: they are described, run and measured, and not quantized again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError
from onnxkit.measure.inspect import QuantizedShare, inspect_model
from onnxkit.measure.profile import ProfileOptions, profile_model
from onnxkit.progress import Progress
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.runtime import open_session
from tests.quantize.graphs import cosine, mlp, random

UP, DOWN = "layer.up", "layer.down"
X = random(2, 5, 32, seed=7)


def dynamic(path: Path) -> None:
    """onnxruntime's `quantize_dynamic`: DynamicQuantizeLinear, MatMulInteger, Cast, Mul."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    onnx.save(mlp(), path.with_name("float.onnx"))
    quantization.quantize_dynamic(path.with_name("float.onnx"), path, per_channel=True)
    path.with_name("float.onnx").unlink()


def static(path: Path) -> None:
    """NNCF's and `quantize_static`'s form: pairs around activations, int8 weights with a scale a channel."""
    model = mlp()
    _dequantized(model, lambda name, weight: [_per_channel(model, name, weight)])
    for node in [node for node in model.graph.node if node.op_type == "MatMul"]:
        value = node.input[0]
        _add(model, "a.scale", np.array(0.2, np.float32))
        _add(model, "a.zero", np.array(128, np.uint8))
        pair = [
            helper.make_node("QuantizeLinear", [value, "a.scale", "a.zero"], [f"{value}.q"]),
            helper.make_node("DequantizeLinear", [f"{value}.q", "a.scale", "a.zero"], [f"{value}.dq"]),
        ]
        node.input[0] = f"{value}.dq"
        at = list(model.graph.node).index(node)
        for new in reversed(pair):
            model.graph.node.insert(at, new)
    onnx.save(model, path)


def blockwise(path: Path) -> None:
    """ModelOpt's int4 form: blocks of INT4 along the depth, DequantizeLinear of opset 21."""
    model = mlp()
    model.opset_import[0].version = 21
    _dequantized(model, lambda name, weight: [_int4(model, name, weight, 16)])
    onnx.save(model, path)


def nbits(path: Path) -> None:
    """What Olive and onnxruntime-genai's builder write: onnxruntime's own MatMulNBits quantizer."""
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    worker = quantizer.MatMulNBitsQuantizer(mlp(), block_size=32, is_symmetric=False, accuracy_level=4)
    worker.process()
    onnx.save(worker.model.model, path)


def by_hand(path: Path) -> None:
    """Weight-only exports before DequantizeLinear had axes: codes, Cast, Mul with the scales."""
    model = mlp()
    _dequantized(model, lambda name, weight: _cast_and_scaled(model, name, weight))
    onnx.save(model, path)


def _cast_and_scaled(model: onnx.ModelProto, name: str, weight: np.ndarray) -> list[onnx.NodeProto]:
    scale = np.abs(weight).max(axis=0) / 127
    _add(model, f"{name}.q", np.round(weight / scale).astype(np.int8))
    _add(model, f"{name}.scale", scale.astype(np.float32))
    cast = helper.make_node("Cast", [f"{name}.q"], [f"{name}.cast"], to=TensorProto.FLOAT)
    return [cast, helper.make_node("Mul", [f"{name}.scale", f"{name}.cast"], [f"{name}.dq"])]


def _per_channel(model: onnx.ModelProto, name: str, weight: np.ndarray) -> onnx.NodeProto:
    scale = np.abs(weight).max(axis=0) / 127
    _add(model, f"{name}.q", np.round(weight / scale).astype(np.int8))
    _add(model, f"{name}.scale", scale.astype(np.float32))
    _add(model, f"{name}.zero", np.zeros(len(scale), np.int8))
    inputs = [f"{name}.q", f"{name}.scale", f"{name}.zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], axis=1)


def _int4(model: onnx.ModelProto, name: str, weight: np.ndarray, size: int) -> onnx.NodeProto:
    depth, channels = weight.shape
    blocks = weight.reshape(-1, size, channels)
    scale = np.abs(blocks).max(axis=1) / 7
    codes = np.round(blocks / scale[:, None]).astype(np.int64).reshape(depth, channels)
    model.graph.initializer.append(
        helper.make_tensor(f"{name}.q", TensorProto.INT4, codes.shape, codes.ravel().tolist())
    )
    _add(model, f"{name}.scale", scale.astype(np.float32))
    inputs = [f"{name}.q", f"{name}.scale"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], axis=0, block_size=size)


def _dequantized(model: onnx.ModelProto, made: Callable[[str, np.ndarray], list[onnx.NodeProto]]) -> None:
    """Replace the weights of the two products."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "MatMul"]:
        name = node.input[1]
        for new in reversed(made(name, numpy_helper.to_array(tensors[name]))):
            model.graph.node.insert(0, new)
        model.graph.initializer.remove(tensors[name])
        node.input[1] = f"{name}.dq"


def _add(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(array, name))


# A scale of float32 a channel of 32 and of 64 weights; a block of 16; and of 32 with half a byte beside it.
PER_CHANNEL = 8 + (32 * 64 + 32 * 32) / (2 * 32 * 64)
FORMS = {
    dynamic: (8, None), static: (8, PER_CHANNEL + 8 * (64 + 32) / (2 * 32 * 64)), blockwise: (4, 4 + 32 / 16),
    nbits: (4, 4 + 32 / 32 + (64 + 32) * 8 / (2 * 32 * 64)), by_hand: (8, PER_CHANNEL),
}  # fmt: skip


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, float | None]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mlp"}))
    request.param(folder / "model.onnx")
    return folder, *FORMS[request.param]


def test_its_layers_and_bits_are_told(form: tuple[Path, int, float | None]) -> None:
    folder, bits, per_weight = form
    share: QuantizedShare = inspect_model(folder).components[0].quantized
    assert (share.nodes, share.linear_nodes, share.share) == (2, 2, 1.0)
    assert share.parameters == 2 * 32 * 64
    assert set(share.layers.values()) == {bits}
    assert all(any(layer in name for name in share.layers) for layer in (UP, DOWN))
    if per_weight is not None:
        assert share.bits_per_weight == pytest.approx(per_weight)


def test_it_runs_and_is_measured(form: tuple[Path, int, float | None]) -> None:
    folder, *_ = form
    given = open_session(mlp().SerializeToString()).run({"x": X})["y"]
    assert cosine(open_session(folder / "model.onnx").run({"x": X})["y"], given) > 0.97
    options = ProfileOptions(batch=(1,), threads=(1,), runs=5)
    (model,) = profile_model([folder], options, progress=Progress()).models
    assert model.measurements


def test_it_is_not_quantized_again(form: tuple[Path, int, float | None], tmp_path: Path) -> None:
    folder, *_ = form
    for scheme in ("int8-dynamic", "int4-weight"):
        with pytest.raises(InputError, match="already quantized"):
            quantize_model(folder, tmp_path / "out", QuantizeOptions(scheme=scheme))
