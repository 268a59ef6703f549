"""AWQ and GPTQ checkpoints: decoded, and repacked into MatMulNBits bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.export import ExportOptions, export_model
from onnxkit.export.packed import by_block, in_blocks
from onnxkit.export.packed_checkpoint import packed_weights, read_packing
from onnxkit.generate import Engine
from onnxkit.graph import nbits
from onnxkit.measure.inspect import inspect_model
from onnxkit.measure.verify import verify_model
from onnxkit.optimize import OptimizeOptions, optimize_model
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.runtime import RuntimeOptions
from tests.export.packed_checkpoints import pack, quantization, save_packed

V2 = {"checkpoint_format": "gptq_v2"}
ONE = RuntimeOptions(threads=1)


def llama(**other: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=96, vocab_size=128, max_position_embeddings=64, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **other,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """What every MatMulNBits of a file multiplies with, by its node's name, float32 `[N, K]`."""
    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
        if node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        if node.op_type != "MatMulNBits":
            continue
        attributes = {each.name: each.i for each in node.attribute}
        bits, scales = attributes["bits"], values[node.input[2]]
        zeros = None
        if len(node.input) > 3:
            zeros = nbits.unpack_zero_points(values[node.input[3]], scales.shape[1], bits)
        codes = nbits.unpack_codes(values[node.input[1]], bits)
        found[node.name] = nbits.dequantize(codes, scales, zeros, bits=bits, depth=attributes["K"])
    return found


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(
        [("awq", 4, {}), ("gptq", 4, {}), ("gptq", 8, {}), ("gptq", 4, V2), ("gptq", 8, V2)]
    ),
    group=st.sampled_from([-1, 16, 32, 48, 128]), groups=st.integers(1, 4), wide=st.integers(1, 4),
    symmetric=st.booleans(), act_order=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_decoded_weights_are_those_of_the_formats_definition(
    variant, group, groups, wide, symmetric, act_order, seed
):
    method, bits, other = variant
    depth, channels = groups * (group if group > 0 else 16), 8 * wide
    given_settings = quantization(method, bits=bits, group=group, **other)
    weight = np.random.default_rng(seed).normal(size=(channels, depth)).astype(np.float32)
    act_order = act_order and method == "gptq"
    made = pack(weight, given_settings, symmetric=symmetric, act_order=act_order, seed=seed)
    tensors = {f"layer.{part}": ir.tensor(value) for part, value in made.parts.items()}
    packing = read_packing({"quantization_config": given_settings}, "config.json")
    weights, rest = packed_weights({**tensors, "layer.bias": ir.tensor(np.zeros(3))}, packing)
    assert list(rest) == ["layer.bias"]
    decoded = weights["layer.weight"].decoded()
    np.testing.assert_array_equal(decoded, made.weight)
    assert (weights["layer.weight"].zero_points is None) is symmetric
    assert np.abs(decoded - weight).max() < 1.01 * made.parts["scales"].max()


def test_groups_are_cut_into_blocks():
    np.testing.assert_array_equal(by_block(np.array([[1, 2]]), 48, 16, 80), [[1, 1, 1, 2, 2]])
    assert in_blocks(np.ones((2, 20), np.uint8), 16).sum() == 40


@pytest.mark.parametrize(
    ("variant", "choices", "bits"),
    [
        (quantization("awq"), {}, 4),
        (quantization("gptq", group=-1), {"symmetric": True}, 4),
        (quantization("gptq", bits=8, **V2), {"act_order": True}, 8),
    ],
)
def test_the_graph_reads_the_checkpoints_codes(tmp_path, variant, choices, bits):
    decoded = save_packed(llama(tie_word_embeddings=True), tmp_path / "packed", variant, **choices)
    options = ExportOptions(keep_quantization=True, accuracy_level=0)
    report = export_model(tmp_path / "packed", tmp_path / "out", options)
    assert report.verification is not None and report.verification.passed
    assert report.kept is not None and report.kept.bits == {bits: 7} and report.kept.floats == {}
    stored = stored_weights(tmp_path / "out" / "model.onnx")
    assert set(stored) == {name.removesuffix(".weight") for name in decoded}
    for name, weight in decoded.items():
        expected = weight
        if "act_order" in choices:  # the input is put in the groups' order, and so are the columns
            parts = load_file(tmp_path / "packed" / "model.safetensors")
            order = np.argsort(parts[f"{name.removesuffix('.weight')}.g_idx"], kind="stable")
            expected = weight[:, order]
        np.testing.assert_array_equal(stored[name.removesuffix(".weight")], expected)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_plain_export_decodes(tmp_path):
    decoded = save_packed(llama(), tmp_path / "packed", quantization("awq"))
    report = export_model(tmp_path / "packed", tmp_path / "out")
    assert report.verification is not None and report.verification.passed and report.kept is None
    model = onnx.load(tmp_path / "out" / "model.onnx")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, weight in decoded.items():
        np.testing.assert_array_equal(values[name].T, weight)


def test_the_fast_level_is_written_after_the_check(tmp_path):
    save_packed(llama(), tmp_path / "packed", quantization("gptq"))
    report = export_model(tmp_path / "packed", tmp_path / "out", ExportOptions(keep_quantization=True))
    assert report.verification is not None and report.verification.worst < 1e-4
    nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
    levels = {each.i for node in nodes for each in node.attribute if each.name == "accuracy_level"}
    assert levels == {4}
    manifest = json.loads((tmp_path / "out" / "onnxkit.json").read_text())
    assert manifest["verified"] is None  # `verify` reports what the rounded activations cost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "gemv"}, "awq in the layout 'gemv'"),
        ({"bits": 3}, "awq of 3 bits"),
        ({"group_size": 0}, "group_size 0"),
    ],
)
def test_variants_that_are_not_read_are_named(change, message):
    with pytest.raises(InputError, match=message):
        read_packing({"quantization_config": quantization("awq") | change}, "config.json")


@pytest.mark.parametrize("config", [{}, {"quantization_config": {"quant_method": "fp8"}}])
def test_other_methods_are_left_to_transformers(config):
    assert read_packing(config, "config.json") is None


def test_groups_that_no_block_fits_in_are_named():
    variant = quantization("awq", group=24)
    made = pack(np.ones((8, 48), np.float32), variant).parts
    packing = read_packing({"quantization_config": variant}, "config.json")
    with pytest.raises(InputError, match="16 must divide them"):
        packed_weights({f"layer.{part}": ir.tensor(value) for part, value in made.items()}, packing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": None}, "has a qweight and no scales"),
        ({"scales": np.ones((1, 8), np.float16)}, "do not fit a weight of 8 x 64 in groups of 32"),
        ({"g_idx": np.zeros(64, np.int32)}, "g_idx"),
        ({"act.scales": np.ones(4, np.float16)}, "scales activations"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, message):
    variant = quantization("gptq")
    made = pack(np.ones((8, 64), np.float32), variant).parts | change
    tensors = {f"layer.{part}": ir.tensor(value) for part, value in made.items() if value is not None}
    packing = read_packing({"quantization_config": variant}, "config.json")
    with pytest.raises(InputError, match=message):
        packed_weights(tensors, packing)


def test_a_float_checkpoint_has_nothing_to_keep(tmp_path):
    llama().save_pretrained(tmp_path / "float")
    with pytest.raises(InputError, match="leave --keep-quantization out"):
        export_model(tmp_path / "float", tmp_path / "out", ExportOptions(keep_quantization=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(accuracy_level=4), "--accuracy-level does not apply"),
        (ExportOptions(keep_quantization=True, dtype="fp16"), "--dtype fp16"),
        (ExportOptions(keep_quantization=True, adapter=Path("x")), "--adapter"),
        (ExportOptions(keep_quantization=True, accuracy_level=3), "0, 1 .float32. or 4"),
    ],
)
def test_options_that_do_not_apply(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        export_model(tmp_path, tmp_path / "out", options)


@pytest.mark.parametrize("level", [0, 4])
def test_a_kept_model_goes_through_the_other_commands(tmp_path, level):
    save_packed(llama(tie_word_embeddings=True), tmp_path / "packed", quantization("gptq"), symmetric=True)
    options = ExportOptions(keep_quantization=True, accuracy_level=level)
    export_model(tmp_path / "packed", tmp_path / "kept", options)
    report = optimize_model(tmp_path / "kept", tmp_path / "cpu", OptimizeOptions(measure=False))
    before, after = (stored_weights(tmp_path / each / "model.onnx") for each in ("kept", "cpu"))
    assert set(before) == set(after) and len(after) == 7
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight)
    assert {"cached-attention", "rms-norm"} <= set(report.components[0].lowered)
    assert verify_model(tmp_path / "cpu").passed
    share = inspect_model(tmp_path / "kept").components[0].quantized
    assert share.layers == dict.fromkeys(before, 4)
    assert share.bits_per_weight == pytest.approx(4 + 16 / 32)
    ids = np.array([1, 5, 9, 3, 7])
    scores = [Engine.open(ModelDir.open(tmp_path / each), ONE).score(ids) for each in ("kept", "cpu")]
    np.testing.assert_allclose(*scores, atol=(1e-4, 1e-2)[level // 4] * np.abs(scores[0]).max())
    with pytest.raises(InputError, match="already quantized"):
        quantize_model(tmp_path / "cpu", tmp_path / "again", QuantizeOptions(scheme="int8-weight"))
