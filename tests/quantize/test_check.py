"""Weights and scales that are not finite are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxkit.errors import InputError
from onnxkit.quantize.check import check_weights
from tests.quantize.graphs import proto, random

WHERE = Path("model.onnx")


def blocks(scales: np.ndarray) -> ir.Model:
    """A product whose scales are stored as float16; a mask of -inf is added."""
    settings = {"K": 32, "N": 2, "bits": 4, "block_size": 32}
    nodes = [
        helper.make_node("Cast", ["w.scale"], ["s"], name="layer/scale", to=1),
        helper.make_node("MatMulNBits", ["x", "w", "s"], ["p"], "layer", domain="com.microsoft", **settings),
        helper.make_node("Add", ["p", "mask"], ["y"], name="add"),
    ]
    weights = {
        "w": np.zeros((2, 1, 16), np.uint8),
        "w.scale": scales.astype(np.float16),
        "mask": np.array([0.0, -np.inf], np.float32),
    }
    return ir.from_proto(proto(nodes, weights, inputs={"x": [1, 32]}))


def test_finite_scales_and_infinite_masks_pass():
    check_weights(blocks(random(2, 1)), WHERE)
    table = random(4, 2)
    table[0] = -np.inf  # Graphormer's: what is out of reach is masked by a table of distances
    nodes = [helper.make_node("Gather", ["t", "x"], ["y"], name="mask")]
    check_weights(ir.from_proto(proto(nodes, {"t": table}, inputs={"x": [3]}, ids=True)), WHERE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_named_with_its_layer(bad: float):
    with pytest.raises(InputError, match=r"1 of 2 values of 'w.scale', which layer 'layer' reads"):
        check_weights(blocks(np.array([[1.0], [bad]])), WHERE)


def test_a_float_weight_is_looked_at_too():
    weight = random(4, 4)
    weight[0, 0] = np.nan
    model = proto(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="kept")], {"w": weight}, inputs={"x": [1, 4]}
    )
    with pytest.raises(InputError, match="1 of 16 values of 'w', which layer 'kept' reads"):
        check_weights(ir.from_proto(model), WHERE)
