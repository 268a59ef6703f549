"""Packed blocks against what ONNX Runtime's operators compute with them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxkit.graph import nbits
from onnxkit.runtime import import_onnxruntime


def run(node: onnx.NodeProto, tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The float32 output of one node over the input `x`."""
    ort = import_onnxruntime()
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def blocks_of(
    channels: int, depth: int, size: int, bits: int, symmetric: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Random codes, scales of both signs (a zero and an outlier among them), zero points."""
    rng = np.random.default_rng(seed)
    shape = (channels, nbits.block_count(depth, size))
    codes = rng.integers(0, 1 << bits, (*shape, size), dtype=np.uint8)
    scales = rng.normal(size=shape).astype(np.float32)
    scales.flat[0], scales.flat[-1] = 1e4, 0.0
    return codes, scales, None if symmetric else rng.integers(0, 1 << bits, shape, dtype=np.uint8)


cases = given(
    channels=st.integers(1, 9), depth=st.integers(1, 150), size=st.sampled_from([16, 32, 64, 128]),
    bits=st.sampled_from(nbits.BITS), symmetric=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@cases
def test_matmul_gives_the_weight_back_exactly(channels, depth, size, bits, symmetric, seed):
    codes, scales, zeros = blocks_of(channels, depth, size, bits, symmetric, seed)
    tensors = {"codes": nbits.pack_codes(codes, bits), "scales": scales}
    if zeros is not None:
        tensors["zeros"] = nbits.pack_zero_points(zeros, bits)
    attributes = nbits.matmul_attributes(depth=depth, channels=channels, bits=bits, size=size)
    node = helper.make_node("MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft", **attributes)
    given_back = run(node, tensors, np.eye(depth, dtype=np.float32)).T
    weight = nbits.dequantize(codes, scales, zeros, bits=bits, depth=depth)
    np.testing.assert_array_equal(given_back, weight)
    one = run(node, tensors, np.eye(depth, dtype=np.float32)[:1]).T  # a single row has kernels of its own
    np.testing.assert_array_equal(one, weight[:, :1])


@settings(max_examples=60, deadline=None)
@cases
def test_gather_reads_the_same_bytes(channels, depth, size, bits, symmetric, seed):
    codes, scales, zeros = blocks_of(channels, depth, size, bits, symmetric, seed)
    packed = nbits.pack_codes(codes, bits)
    tensors = {"rows": nbits.gather_rows(packed), "scales": scales}
    assert np.shares_memory(tensors["rows"], packed)
    if zeros is not None:
        tensors["zeros"] = nbits.pack_zero_points(zeros, bits)
    inputs = ["rows", "x", *[name for name in tensors if name != "rows"]]
    attributes = nbits.gather_attributes(bits=bits, size=size)
    node = helper.make_node("GatherBlockQuantized", inputs, ["y"], domain="com.microsoft", **attributes)
    rows = run(node, tensors, np.arange(channels)[None])
    np.testing.assert_array_equal(rows[0], nbits.dequantize(codes, scales, zeros, bits=bits))


@cases
def test_unpacking_undoes_packing(channels, depth, size, bits, symmetric, seed):
    codes, _, zeros = blocks_of(channels, depth, size, bits, symmetric, seed)
    packed = nbits.pack_codes(codes, bits)
    assert packed.nbytes == codes.size * bits // 8
    np.testing.assert_array_equal(nbits.unpack_codes(packed, bits), codes)
    if zeros is not None:
        points = nbits.pack_zero_points(zeros, bits)
        assert points.shape == (channels, -(-codes.shape[1] * bits // 8))
        np.testing.assert_array_equal(nbits.unpack_zero_points(points, codes.shape[1], bits), zeros)


def test_the_first_code_lies_in_the_low_half():
    codes = np.arange(16, dtype=np.uint8).reshape(1, 1, 16)
    assert nbits.pack_codes(codes, 4).tolist() == [[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]]
    assert nbits.pack_zero_points(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("bits", nbits.BITS)
def test_scales_may_be_stored_in_half_precision(bits):
    codes, scales, zeros = blocks_of(3, 64, 32, bits, False, 1)
    half = scales.astype(np.float16)
    np.testing.assert_array_equal(
        nbits.dequantize(codes, half, zeros, bits=bits),
        nbits.dequantize(codes, half.astype(np.float32), zeros, bits=bits),
    )
