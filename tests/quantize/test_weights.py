"""Scales and codes against a plain re-implementation, over shapes, signs, outliers, zeros and ties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from onnxkit.quantize.codes import weights
from onnxkit.quantize.codes.weights import channel_scales, codes
from tests.quantize.graphs import proto, session

VALUES = st.floats(-8, 8, width=32) | st.sampled_from([0.0, 1.0, -1.0, 127.0, -1000.0, 1e-30])
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=VALUES)
GRIDS = st.sampled_from(["full", "paired", "seven"])


def naive_scale(channel: np.ndarray, grid: str) -> float:
    """Of one channel's weights in the order of their inputs."""
    values = [float(value) for value in channel]
    peak = max(abs(value) for value in values)
    if grid == "paired":
        pairs = [a + b for a, b in pairwise(values) if a * b >= 0]
        peak = max([peak, *map(abs, pairs)])
    scale = peak / (64 if grid == "seven" else 127)
    return scale if scale >= np.finfo(np.float32).tiny else 1.0


@settings(max_examples=200, deadline=None)
@given(MATRICES, GRIDS, st.sampled_from([0, 1]))
def test_scales_are_those_of_a_plain_loop(weight, grid, axis):
    found = channel_scales(weight, axis, grid, per_channel=True)
    rows = weight if axis == 0 else weight.T
    np.testing.assert_allclose(found, [naive_scale(row, grid) for row in rows], rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(MATRICES, GRIDS, st.sampled_from([0, 1]), st.booleans())
def test_codes_are_the_nearest_and_in_range(weight, grid, axis, per_channel):
    scales = channel_scales(weight, axis, grid, per_channel=per_channel)
    made = codes(weight, scales, axis)
    step = scales[:, None] if axis == 0 else scales[None, :]
    limit = 64 if grid == "seven" else 127
    assert np.abs(made.astype(int)).max() <= limit
    assert (np.abs(made * step - weight) <= step * (0.5 + 1e-5)).all()
    if not per_channel:
        assert len(set(scales.tolist())) == 1


@settings(max_examples=200, deadline=None)
@given(MATRICES, st.sampled_from([0, 1]))
def test_paired_codes_cannot_overflow_sixteen_bits(weight, axis):
    made = codes(weight, channel_scales(weight, axis, "paired", per_channel=True), axis).astype(int)
    rows = made if axis == 0 else made.T
    for one, other in pairwise(rows.T):
        assert (255 * (np.maximum(one, 0) + np.maximum(other, 0)) <= 32767).all()
        assert (255 * (np.minimum(one, 0) + np.minimum(other, 0)) >= -32768).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("grid", ["full", "paired", "seven"])
def test_working_in_blocks_changes_nothing(monkeypatch, axis, grid):
    weight = np.random.default_rng(3).standard_normal((37, 11)).astype(np.float32)
    whole = channel_scales(weight, axis, grid, per_channel=True)
    whole_codes = codes(weight, whole, axis)
    monkeypatch.setattr(weights, "_BLOCK", 25)
    np.testing.assert_array_equal(channel_scales(weight, axis, grid, per_channel=True), whole)
    np.testing.assert_array_equal(codes(weight, whole, axis), whole_codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(bad):
    weight = np.ones((4, 4), np.float32)
    weight[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        channel_scales(weight, 1, "paired", per_channel=True)


def test_zero_and_denormal_channels_give_zero_codes():
    weight = np.zeros((3, 4), np.float32)
    weight[1] = 1e-44
    weight[2] = 2.0
    scales = channel_scales(weight, 0, "full", per_channel=True)
    assert np.isfinite(scales).all()
    assert codes(weight, scales, 0).tolist() == [[0] * 4, [0] * 4, [127] * 4]


def test_constant_weights_are_exact():
    weight = np.full((6, 3), -0.75, np.float32)
    scales = channel_scales(weight, 1, "full", per_channel=True)
    np.testing.assert_allclose(codes(weight, scales, 1) * scales, weight, rtol=1e-6)


@pytest.mark.parametrize("grid", ["paired", "seven"])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_worst_activations_are_exact_on_this_cpu(grid, rows):
    """All codes 255 where a weight is positive, 0 elsewhere: what saturates in 8 bits does not here."""
    weight = np.random.default_rng(0).standard_normal((96, 48)).astype(np.float32)
    scales = channel_scales(weight, 1, grid, per_channel=True)
    made = codes(weight, scales, 1)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["i"])
    model = proto([node, helper.make_node("Cast", ["i"], ["y"], to=1)], {"w": made}, inputs={"x": [rows, 96]})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    loaded = session(model)
    for column in range(48):
        row = np.where(made[:, column] > 0, 255, 0).astype(np.uint8)
        x = np.tile(row, (rows, 1))
        np.testing.assert_array_equal(loaded.run({"x": x})["y"], x.astype(int) @ made.astype(int))
