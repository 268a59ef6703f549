"""Packed linears and the skip form of RMSNorm against the graph that they replace."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from onnxkit.graph import fusions, ort_cpu
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.lowering import lower
from onnxkit.graph.packing import pack_linears
from onnxkit.runtime import RuntimeOptions, open_session
from tests.decoder_graphs import DecoderSpec, build_decoder, feeds
from tests.encoder_graphs import EncoderSpec, build_encoder

SPECS = {
    "plain": DecoderSpec(),
    "biased": DecoderSpec(biased=True),
    "cross": DecoderSpec(padding=False, cross=True, kv_heads=4, rotary=False),
}


def lowered(spec: DecoderSpec, path):
    save_model(build_decoder(spec), path / "in.onnx")
    model = load_model(path / "in.onnx")
    lower(model, ort_cpu.LOWERINGS)
    return model


@pytest.mark.parametrize("name", SPECS)
def test_packed_and_fused_equals_the_input(name, tmp_path):
    spec = SPECS[name]
    model = lowered(spec, tmp_path)
    assert pack_linears(model) == 6  # q, k and v of two layers; gate and up are wider than their input
    norms = 7 if spec.cross else 5
    assert fusions.fuse_skip_rms_norm(model) == norms - 1
    save_model(model, tmp_path / "out.onnx")
    before, after = (
        open_session(tmp_path / f"{part}.onnx", RuntimeOptions(threads=1)) for part in ("in", "out")
    )
    for case in (feeds(spec, new=5), feeds(spec, new=1, past=4)):
        right, got = before.run(case), after.run(case)
        for output, array in right.items():
            np.testing.assert_allclose(got[output], array, atol=1e-5 * np.abs(array).max(), err_msg=output)


def test_names_join_those_of_the_parts(tmp_path):
    model = lowered(DecoderSpec(biased=True), tmp_path)
    pack_linears(model)
    names = {node.name for node in model.graph}
    assert "model.layers.1.self_attn.q_proj,k_proj,v_proj" in names
    assert "model.layers.0.self_attn.q_proj,k_proj,v_proj/bias" in names
    assert "model.layers.0.self_attn.q_proj,k_proj,v_proj.weight" in model.graph.initializers
    assert Counter(node.op_type for node in model.graph)["MatMul"] == 2 * 5


def test_a_weight_with_another_reader_is_left_alone(tmp_path):
    model = lowered(DecoderSpec(), tmp_path)
    first = next(node for node in model.graph if node.name == "model.layers.0.self_attn.k_proj")
    second = next(node for node in model.graph if node.name == "model.layers.1.self_attn.k_proj")
    second.replace_input_with(1, first.inputs[1])
    assert pack_linears(model) == 4  # q and v


def test_encoders_are_left_alone():
    model = build_encoder(EncoderSpec(rotary=True))
    lower(model, ort_cpu.LOWERINGS)
    assert pack_linears(model) == 0
    assert fusions.fuse_skip_rms_norm(model) == 0
