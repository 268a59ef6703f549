"""Lowerings against the primitives that they replace, on ONNX Runtime, with both kinds of padding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxkit.graph import ort_cpu, ort_cuda
from onnxkit.graph.files import load_model
from onnxkit.graph.lowering import lower
from onnxkit.graph.regions import find_regions
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain

ONE = RuntimeOptions(threads=1)
CASES = [
    pytest.param(feeds(1, 7), id="batch 1"),
    pytest.param(feeds(3, 9, padding="right"), id="right"),
    pytest.param(feeds(3, 9, padding="left"), id="left"),
    pytest.param(feeds(2, 1), id="length 1"),
]
SPECS = {
    "padding": (EncoderSpec(), {"packed-attention": 2, "gelu": 2}),
    "no mask": (EncoderSpec(padding=False), {"attention": 2, "gelu": 2}),
    "no bias": (EncoderSpec(biased=False), {"attention": 2, "gelu": 2}),
    "cross": (EncoderSpec(cross=True), {"packed-attention": 1, "attention": 1, "gelu": 2}),
    "causal": (EncoderSpec(padding=False, causal=True), {"attention": 2, "gelu": 2}),
    "causal, padding": (EncoderSpec(causal=True), {"attention": 2, "gelu": 2}),
    "window": (EncoderSpec(window=2), {"attention": 2, "gelu": 2}),
    "rotary": (EncoderSpec(rotary=True), {"attention": 2, "rotary": 4, "gelu": 2}),
    "position bias": (EncoderSpec(position_bias=True), {"attention": 2, "gelu": 2}),
    "wide v": (EncoderSpec(v_size=16), {"packed-attention": 2, "gelu": 2}),
    "tanh": (EncoderSpec(approximate="tanh"), {"packed-attention": 2, "gelu": 2}),
    "grouped": (EncoderSpec(grouped=True), {"gelu": 2}),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    spec, expected = SPECS[request.param]
    folder = tmp_path_factory.mktemp("lower")
    save_plain(build_encoder(spec), folder / "primitive.onnx")
    model = load_model(folder / "primitive.onnx")
    result = lower(model, ort_cpu.LOWERINGS)
    save_plain(model, folder / "lowered.onnx")
    assert result.lowered == Counter(expected) - Counter()
    return [open_session(folder / name, ONE) for name in ("primitive.onnx", "lowered.onnx")]


@pytest.mark.parametrize("pair", SPECS, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_lowered_equals_primitives(pair, case):
    before, after = (
        s.run({spec.name: case[spec.name] for spec in s.inputs})["last_hidden_state"] for s in pair
    )
    valid = case["attention_mask"].astype(bool) if len(pair[0].inputs) > 1 else slice(None)
    np.testing.assert_allclose(after[valid], before[valid], atol=2e-5)


def lowered(spec: EncoderSpec, tmp_path: Path, **arguments) -> ir.Model:
    save_plain(build_encoder(spec), tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    lower(model, ort_cpu.LOWERINGS, **arguments)
    return model


def test_packed_weight_is_the_three_projections_side_by_side(tmp_path):
    model = lowered(EncoderSpec(), tmp_path)
    original = build_encoder().graph.initializers
    names = [f"encoder.layer.1.{part}.weight" for part in ("query", "key", "value")]
    packed = model.graph.initializers["encoder.layer.1.self.qkv.weight"].const_value.numpy()
    np.testing.assert_array_equal(
        packed, np.concatenate([original[n].const_value.numpy() for n in names], axis=1)
    )


def test_nodes_are_named_by_their_region_and_linears_keep_their_names(tmp_path):
    names = {node.name: node.op_type for node in lowered(EncoderSpec(), tmp_path).graph}
    assert names["encoder.layer.0.self/attention"] == "Attention"
    assert names["encoder.layer.1.down"] == "MatMul"


def test_a_disabled_row_leaves_the_region_to_the_next(tmp_path):
    save_plain(build_encoder(), tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    result = lower(model, ort_cpu.LOWERINGS, disabled=("packed-attention", "gelu"))
    assert result.lowered == {"attention": 2}
    assert Counter(region.op for region in find_regions(model))["gelu"] == 2


def test_lowering_twice_changes_nothing(tmp_path):
    model = lowered(EncoderSpec(rotary=True), tmp_path)
    before = [node.name for node in model.graph]
    assert not lower(model, ort_cpu.LOWERINGS).lowered
    assert [node.name for node in model.graph] == before


def test_one_cast_serves_every_layer(tmp_path):
    model = lowered(EncoderSpec(layers=3), tmp_path)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attentions) == 3
    assert len({node.inputs[3] for node in attentions}) == 1


def test_a_kept_region_says_why(tmp_path):
    save_plain(build_encoder(EncoderSpec(grouped=True)), tmp_path / "m.onnx")
    result = lower(load_model(tmp_path / "m.onnx"), ort_cpu.LOWERINGS)
    assert result.kept["attention"] == {"packed-attention: grouped heads; attention: grouped heads": 2}


def test_float16_stays_primitive_on_the_cpu_and_is_fused_on_cuda(tmp_path):
    for rows, expected in ((ort_cpu.LOWERINGS, set()), (ort_cuda.LOWERINGS, {"packed-attention", "gelu"})):
        model = build_encoder()
        for value in model.graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                data = value.const_value.numpy().clip(-6e4, 6e4).astype(np.float16)
                value.const_value, value.dtype = ir.tensor(data, name=value.name), ir.DataType.FLOAT16
        for node in model.graph:
            for output in node.outputs:
                output.dtype = None
        assert set(lower(model, rows).lowered) == expected
