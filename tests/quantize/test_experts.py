"""Experts of a mixture: their loop with weights in blocks, against what the codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxkit.errors import InputError
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.select import refuse_unsuitable
from tests.expert_graphs import CHOSEN, DEPTH, EXPERTS, WEIGHT, WIDTH, X, experts
from tests.heard import Heard
from tests.quantize.graphs import operators, proto, quantized, random, session


def run(model: onnx.ModelProto) -> np.ndarray[Any, Any]:
    return session(model).run({"x": X, "experts": CHOSEN})["out"]


def body(model: onnx.ModelProto) -> list[str]:
    [loop] = [node for node in model.graph.node if node.op_type == "Loop"]
    return [node.op_type for node in loop.attribute[0].g.node]


@pytest.mark.parametrize("transposed", [False, True], ids=["[E,N,K]", "[E,K,N]"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_are_multiplied_with_their_experts_codes(transposed: bool, bits: Any, symmetric: bool) -> None:
    """A scale a block makes the worst error half a step: of 4 bits, 1/15 of the block's range."""
    float_model = experts(transposed=transposed)
    name = next(node.name for node in float_model.graph.node if node.op_type == "Loop")
    blocks = BlockFormat(bits=bits, size=32, symmetric=symmetric, accuracy_level=4, algorithm="rtn")
    options = QuantizeOptions(scheme="int4-weight", include=(".",))
    model, selection = quantized(float_model, options=options, formats={name: blocks})
    [target] = selection.targets
    assert (target.kind, target.parameters, target.depth) == ("experts", EXPERTS * WIDTH * DEPTH, DEPTH)
    assert {"MatMul", "MatMulNBits"} & {*body(model)} == {"MatMulNBits"}
    decoded = _decoded(model, bits, symmetric)
    assert np.abs(decoded - WEIGHT).max() < np.abs(WEIGHT).max() * (0.15 if bits == 4 else 0.01)
    expected = np.einsum("mk,mnk->mn", X, decoded[CHOSEN])
    np.testing.assert_allclose(run(model), expected, atol=1e-4)
    assert "w" not in {tensor.name for tensor in model.graph.initializer}
    with pytest.raises(InputError, match="already quantized"):
        refuse_unsuitable(ir.from_proto(model), "model.onnx")


def _decoded(model: onnx.ModelProto, bits: int, symmetric: bool) -> np.ndarray[Any, Any]:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    codes, scales = stored[f"w.int{bits}"], stored[f"w.int{bits}.scale"].astype(np.float32)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    zeros: Any = 1 << (bits - 1)
    if not symmetric:
        packed = stored[f"w.int{bits}.zero_point"]
        pair = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1) if bits == 4 else packed
        zeros = pair[:, : scales.shape[1], None].astype(np.float32)
    weight = (codes.astype(np.float32) - zeros) * scales[..., None]
    return weight.reshape(EXPERTS, WIDTH, -1)[..., :DEPTH]


def test_another_loop_is_no_target() -> None:
    step = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "step",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("going", 9))],
        [helper.make_tensor_value_info("still", 9, []), helper.make_tensor_value_info("y", 1, None)],
    )
    loop = helper.make_node("Loop", ["count", ""], ["all"], name="loop", body=step)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    weights = {"count": np.array(2), "w": random(32, 32)}
    model = proto([loop, product], weights, inputs={"x": ["n", 32]}, outputs=("y", "all"))
    options = QuantizeOptions(scheme="int8-weight", include=("layer",))
    done, selection = quantized(model, options=options)
    assert [target.name for target in selection.targets] == ["layer"]
    assert operators(done).count("Loop") == 1


def test_a_scheme_without_experts_says_how_much_stays_float(tmp_path: Path) -> None:
    model = experts(transposed=False)
    inner = random(DEPTH, DEPTH, seed=3)
    [x, *_] = model.graph.input
    head = helper.make_node("MatMul", ["out", "head"], ["y"], name="head")
    model.graph.node.append(head)
    model.graph.initializer.append(numpy_helper.from_array(random(WIDTH, 100, seed=2), "head"))
    first = helper.make_node("MatMul", ["raw", "inner"], ["x"], name="inner")
    model.graph.node.insert(0, first)
    model.graph.initializer.append(numpy_helper.from_array(inner, "inner"))
    x.name = "raw"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["n", 100]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    source = tmp_path / "in"
    source.mkdir()
    onnx.save(model, source / "model.onnx")
    heard = Heard()
    options = QuantizeOptions(scheme="int8-dynamic", measure=False)
    report = quantize_model(source, tmp_path / "out", options, progress=heard)
    share = round(100 * WEIGHT.size / (WEIGHT.size + inner.size + 2400))
    expected = f"{share} % of the weights are in experts, which stay float; int8-weight, int4-weight, mixed"
    assert [text for text in heard.warnings if text.startswith(expected)]
    assert [layer.reason.startswith(expected) for layer in report.kept if layer.op_type == "Loop"] == [True]
