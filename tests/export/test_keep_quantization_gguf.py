"""The blocks of GGUF files in MatMulNBits and GatherBlockQuantized, against gguf's own decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from onnxkit.errors import InputError
from onnxkit.export import ExportOptions, export_model
from onnxkit.export.packed_gguf import _LAYOUTS, REPACKED, _packed, same_as
from onnxkit.runtime import open_session
from tests.export.gguf_files import HEAD, KV_HEADS, PIECES, llama, quantize, write

KEEP = ExportOptions(keep_quantization=True, accuracy_level=0)


@pytest.mark.parametrize("name", REPACKED)
def test_decoded_blocks_are_ggufs(name):
    kind, rows = Kind[name], np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
    rows[0], rows[1, 40] = 0.0, 1e3
    data = quantize(rows, kind)
    right = quants.dequantize(data, kind)
    weight = _packed(data, _LAYOUTS[name])
    exact = same_as(weight, torch.from_numpy(right), ())
    assert exact is not None and exact.bits in (4, 8)
    np.testing.assert_array_equal(exact.decoded(), right)
    turned = right.reshape(1, 3, 2, 512).swapaxes(1, 2).reshape(6, 512)
    again = same_as(weight, torch.from_numpy(turned), (1,))
    assert again is not None
    np.testing.assert_array_equal(again.decoded(), turned)
    assert same_as(weight, torch.from_numpy(right + 1), (1,)) is None
    assert same_as(weight, torch.from_numpy(right.T), (1,)) is None


def test_minimums_that_the_middle_would_round_stand_around_zero():
    data = quantize(np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32), Kind.Q4_1)
    halves = data.view(np.float16)
    halves[:, 0], halves[:, 1] = 3.0, 1e-7  # 24 bits do not hold both
    weight = _packed(data, _LAYOUTS["Q4_1"])
    exact = same_as(weight, torch.from_numpy(quants.dequantize(data, Kind.Q4_1)), ())
    assert exact is not None and exact.zero_points is not None
    assert replace(exact, zero_points=None).decoded().tolist() != exact.decoded().tolist()


def _mixed(name: str) -> Kind:
    """As llama.cpp mixes them: the table finer, values finer than the rest."""
    return Kind.Q8_0 if name == "token_embd" else Kind.Q5_0 if "attn_v" in name else Kind.Q4_1


@pytest.mark.parametrize(
    ("kind", "operators", "bits"),
    [
        (_mixed, {"MatMulNBits": 15, "GatherBlockQuantized": 1}, {4: 12, 8: 3}),
        (Kind.Q4_0, {"MatMulNBits": 15, "GatherBlockQuantized": 1}, {4: 15}),
    ],
)
def test_a_tied_model_reads_the_files_blocks(tmp_path: Path, kind, operators, bits) -> None:
    file = write(tmp_path / "tiny.gguf", llama(tied=True), kind=kind)
    report = export_model(file, tmp_path / "out", KEEP)
    assert report.verification is not None and report.verification.passed
    assert report.kept is not None and report.kept.floats == {} and report.kept.bits == bits
    model = onnx.load(tmp_path / "out" / "model.onnx")
    found = [node.op_type for node in model.graph.node]
    assert {name: found.count(name) for name in operators} == operators
    codes = [tensor for tensor in model.graph.initializer if tensor.dims[:1] == [len(PIECES) + 2]]
    assert [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in codes] == ["UINT8", "FLOAT16"]
    plain = export_model(file, tmp_path / "plain")
    assert plain.kept is None
    np.testing.assert_allclose(_logits(tmp_path / "out"), _logits(tmp_path / "plain"), atol=1e-4)


def test_k_formats_are_kept_where_rows_are_long_enough(tmp_path: Path) -> None:
    kinds = {
        "attn_v": Kind.Q6_K, "attn_output": Kind.Q4_0, "output": Kind.Q6_K, "token_embd": Kind.Q5_1
    }  # fmt: skip
    model = llama(256)

    def kind(name: str) -> Kind:
        return next((found for part, found in kinds.items() if name.endswith(part)), Kind.Q4_K)

    report = export_model(write(tmp_path / "k.gguf", model, kind=kind), tmp_path / "out", KEEP)
    assert report.verification is not None and report.verification.passed
    assert report.kept is not None and report.kept.bits == {4: 12, 8: 3}
    assert report.kept.floats == {"model.embed_tokens.weight": "Q5_1 has no form in blocks of 4 or 8 bits"}


def test_a_file_of_floats_has_nothing_to_keep(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", llama(), kind=Kind.F32)
    with pytest.raises(InputError, match="leave --keep-quantization out"):
        export_model(file, tmp_path / "out", KEEP)


def _logits(directory: Path) -> np.ndarray:
    session, ids = open_session(directory / "model.onnx"), np.array([[5, 6, 7, 8, 9]])
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(5)[None]}
    past = {
        spec.name: np.zeros((1, KV_HEADS, 0, HEAD), np.float32)
        for spec in session.inputs
        if spec.name.startswith("past")
    }
    feeds = {spec.name: known[spec.name] for spec in session.inputs if spec.name in known}
    return session.run({**feeds, **past})["logits"]
