"""The stage on models that generate: a decoder, an encoder and a decoder over one embedding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.cli.console import Console
from onnxkit.cli.quantize import show
from onnxkit.errors import UsageError
from onnxkit.graph.kv_cache import CACHE
from onnxkit.optimize import OptimizeOptions, optimize_model
from onnxkit.quantize import QuantizeOptions, planning, quantize_model
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.runtime import RuntimeOptions, open_session
from tests.decoder_graphs import DecoderSpec, feeds
from tests.generating_models import language_model, translator
from tests.heard import Heard
from tests.optimize.test_decoders import decoder, encoder_decoder

ONE = RuntimeOptions(threads=1)
LAYER_BY_LAYER = tuple(
    name for name, scheme in SCHEMES.items() if scheme.way is not None and not scheme.needs_calibration
)
LEAST = {"int4-weight": 0.9, "log4": 0.8, "mixed": 0.9}
"""Cosine of the logits of random weights."""
GOALS = {"mixed": {"bits_per_weight": 7.0}}


@pytest.fixture(scope="module")
def lowered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    source = decoder(folder / "in", DecoderSpec(heads=4, kv_heads=2, size=16))
    optimize_model(source, folder / "out", OptimizeOptions(measure=False, threads=1))
    return folder / "out"


def quantize(source: Path, out: Path, **options):
    return quantize_model(source, out, QuantizeOptions(threads=1, **options))


@pytest.mark.parametrize("scheme", LAYER_BY_LAYER)
def test_a_lowered_decoder_keeps_its_cache_and_its_answers(lowered, tmp_path, scheme):
    report = quantize(lowered, tmp_path / "out", scheme=scheme, measure=False, **GOALS.get(scheme, {}))
    names = {layer.name for layer in report.quantized}
    assert "lm_head" in names
    packed = "q_proj,k_proj,v_proj" if scheme != "mixed" else "v_proj"
    assert any(packed in name for name in names)
    before, after = (open_session(path / "model.onnx", ONE) for path in (lowered, tmp_path / "out"))
    assert after.metadata[CACHE] == "shared"
    assert not onnx.load(tmp_path / "out/model.onnx").graph.value_info
    spec = DecoderSpec(heads=4, kv_heads=2, size=16)
    for case in (feeds(spec, new=6), feeds(spec, new=1, past=6, buffer=12)):
        right, got = (one.run(case)["logits"].reshape(-1) for one in (before, after))
        assert right @ got / np.sqrt((right @ right) * (got @ got)) > LEAST.get(scheme, 0.995)


def test_int8_gives_a_row_what_it_gets_alone(lowered, tmp_path, monkeypatch):
    """Each token has a scale of its own: what stands beside it in the batch does not matter."""
    monkeypatch.setattr(planning, "ROWS_FROM", 0)
    quantize(lowered, tmp_path / "out", scheme="int8-dynamic", measure=False)
    session = open_session(tmp_path / "out/model.onnx", ONE)
    spec = DecoderSpec(heads=4, kv_heads=2, size=16)
    both = feeds(spec, new=6, pads=(0, 0))
    whole = session.run(both)["logits"]
    for row in range(2):
        alone = session.run({name: array[row : row + 1] for name, array in both.items()})["logits"]
        np.testing.assert_allclose(whole[row], alone[0], atol=1e-4)


@pytest.mark.parametrize(("format", "blocks"), [(None, True), ("qdq", False)])
def test_the_head_of_rows_is_in_blocks_where_that_stays_standard(
    lowered, tmp_path, monkeypatch, format, blocks
):
    monkeypatch.setattr(planning, "ROWS_FROM", 0)
    given = {"scheme": "int8-static", "calibration": "random", "samples": 4, "format": format}
    report = quantize(lowered, tmp_path / "out", **given, measure=False)
    (head,) = [layer for layer in report.quantized if layer.name == "lm_head"]
    (other,) = [layer for layer in report.quantized if layer.name.endswith("layers.0.mlp.down_proj")]
    assert ("in blocks" in head.format) is blocks
    assert "calibrated" in other.format


def test_a_decoder_is_measured_on_one_step(lowered, tmp_path):
    report = quantize(lowered, tmp_path / "out", scheme="int8-weight", block_size=16, symmetric=False)
    assert report.weight_bits == 8
    assert all(
        layer.format.startswith("int8 in blocks of 16, with zero points, search")
        for layer in report.quantized
    )
    assert report.bits_per_weight == pytest.approx(8 + 24 / 16, rel=0.01)
    measured = report.measurement
    assert measured.speed.shape.startswith("one token after ")
    assert measured.prompt is not None and measured.prompt.shape.startswith("a prompt of ")
    assert measured.text is None and measured.divergence is None
    assert [one.output for one in report.measurement.agreement] == ["logits"]


@pytest.mark.parametrize("make", [language_model, translator])
def test_what_the_text_and_what_the_outputs_say_is_told_apart(tmp_path, make):
    source, file = make(tmp_path / "in"), tmp_path / "eval.txt"
    file.write_text("the cat sat on the mat.\nwhat a day, said the dog.\n")
    heard, console = Heard(), Console(out=io.StringIO())
    given = {"scheme": "int8-weight", "include": (".",), "eval": file, "threads": 1}
    report = quantize_model(source, tmp_path / "out", QuantizeOptions(**given), progress=heard)
    measured = report.measurement
    assert (measured.text, measured.measured_on) == (str(file), "seeded random inputs")
    assert measured.divergence is not None and measured.divergence.tokens > 10
    assert f"measuring on {file}" in heard.notes
    before = "the encoder on 1x" if make is translator else "a prompt of "
    assert measured.prompt is not None and measured.prompt.shape.startswith(before)
    show(console, report)
    shown = console.out.getvalue()
    assert f"\nAgainst the input model, on {file}\n" in shown
    assert f"\nOutputs, on {measured.samples} samples of seeded random inputs\n" in shown


@pytest.mark.parametrize("scheme", LAYER_BY_LAYER)
def test_both_graphs_of_an_encoder_decoder_are_quantized(tmp_path, scheme):
    source = encoder_decoder(tmp_path / "in")
    report = quantize(
        source, tmp_path / "out", scheme=scheme, include=(".",), measure=scheme == "int8-dynamic",
        **GOALS.get(scheme, {}),
    )  # fmt: skip
    assert {layer.component for layer in report.quantized} == {"encoder", "decoder"}
    assert {layer.component for layer in report.kept} <= {"encoder", "decoder"}
    directory = ModelDir.open(tmp_path / "out")
    assert set(directory.components) == {"encoder", "decoder"}
    assert (tmp_path / "out/model.onnx.data").stat().st_size < report.size_after_bytes
    for component in directory.components.values():
        open_session(tmp_path / "out" / component.file, ONE)


def test_patterns_may_match_in_one_graph_only(tmp_path):
    source = encoder_decoder(tmp_path / "in")
    report = quantize(source, tmp_path / "out", include=("cross_attn",), measure=False)
    assert {layer.component for layer in report.quantized} == {"decoder"}
    with pytest.raises(UsageError, match="matches no node"):
        quantize(source, tmp_path / "other", include=("nowhere",), measure=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int8-dynamic", "block_size": 32}, "--block-size applies to"),
        ({"scheme": "int8-dynamic", "format": "qdq"}, "--format applies to int8-static, not"),
        ({"scheme": "int4-weight", "smooth_quant": 0.5}, "--smooth-quant applies to"),
        ({"scheme": "fp16", "min_cosine": 0.9}, "--min-cosine does not apply to fp16"),
        ({"scheme": "int4-weight", "algorithm": "gptk"}, "--algorithm gptk: did you mean gptq"),
        ({"scheme": "int4-weight", "algorithm": "gptq"}, "--algorithm gptq needs a calibration set"),
        ({"scheme": "int8-dynamic", "smooth_quant": 0.5}, "--smooth-quant needs a calibration set"),
        ({"scheme": "int8-dynamic", "smooth_quant": "on"}, "--smooth-quant on: auto, off or a number"),
        ({"scheme": "int8-dynamic", "min_cosine": 1.5}, "--min-cosine 1.5: -1 to 1"),
        ({"scheme": "mixed"}, "mixed needs a goal"),
        ({"scheme": "int4-weight", "target": "avx3"}, "unknown --target 'avx3': did you mean avx2"),
        ({"scheme": "int8-dynamic", "symmetric": False}, "--symmetric/--asymmetric applies to"),
        ({"scheme": "int4-weight", "per_channel": False}, "--per-tensor applies to int8-dynamic and"),
        ({"scheme": "int4-weight", "block_size": 33}, "--block-size 33"),
    ],
)
def test_what_does_not_apply_is_a_usage_error(lowered, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        quantize(lowered, tmp_path / "out", **options)
