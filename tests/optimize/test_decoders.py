"""The stage on models that generate: a decoder with its cache, an encoder and a decoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.graph import files
from onnxkit.graph.kv_cache import CACHE
from onnxkit.optimize import LEVELS
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.runtime import RuntimeOptions, import_onnxruntime, open_session
from tests import decoder_graphs
from tests.decoder_graphs import DecoderSpec, build_decoder, feeds
from tests.encoder_graphs import build_encoder, save_plain
from tests.optimize.test_optimize_model import CONFIG, optimize


def decoder(path: Path, spec: DecoderSpec | None = None) -> Path:
    path.mkdir()
    save_plain(build_decoder(spec), path / "model.onnx")
    config = {**CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": decoder_graphs.VOCABULARY}))
    return path


@pytest.mark.parametrize("level", [level.number for level in LEVELS])
def test_every_level_keeps_what_a_decoder_computes(tmp_path, level):
    report = optimize(decoder(tmp_path / "in"), tmp_path / "out", level=level)
    change = report.components[0]
    assert change.check.passed
    assert {"prefill", "left padding", "decode", "continuation"} <= set(change.check.cases)
    assert not change.dropped
    session = open_session(tmp_path / "out/model.onnx", RuntimeOptions(threads=1))
    shared = session.metadata.get(CACHE) == "shared"
    assert shared is change.shared_cache is (level >= 2)
    if shared:
        assert change.lowered["cached-attention"] == 2
        assert "Softmax" not in change.nodes_after
    kinds = {spec.dtype for spec in session.inputs if spec.name.startswith("past_key_values.")}
    assert kinds == {"float16" if level == 4 else "float32"}


def test_a_decoder_is_timed_on_one_step(tmp_path):
    report = optimize(decoder(tmp_path / "in"), tmp_path / "out", measure=True, level=4)
    assert report.components[0].speed.case == "decode"


def test_a_disabled_lowering_gives_up_the_shared_cache(tmp_path):
    report = optimize(decoder(tmp_path / "in"), tmp_path / "out", disable_fusions=("cached-attention",))
    assert not report.components[0].shared_cache
    assert not {"packed-linears", "skip-rms-norm"} & set(report.components[0].lowered)


def encoder_decoder(path: Path) -> Path:
    """Two graphs over one embedding."""
    path.mkdir()
    encoder = build_encoder()
    decoder = build_decoder(DecoderSpec(padding=False, cross=True, kv_heads=4, rotary=False))
    words, embedding = (
        graph.graph.initializers[name]
        for graph, name in ((encoder, "words"), (decoder, "model.embed_tokens.weight"))
    )
    rows = np.array(words.const_value.numpy()[: decoder_graphs.VOCABULARY])
    for value in (words, embedding):
        value.const_value, value.shape = ir.tensor(rows, name=value.name), ir.Shape(rows.shape)
    save_plain(encoder, path / "encoder_model.onnx")
    save_plain(decoder, path / "decoder_model.onnx")
    config = {**CONFIG, "model_type": "t5", "is_encoder_decoder": True, "vocab_size": len(rows)}
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["T5Model"]}))
    return path


@pytest.mark.parametrize("level", [0, 2, 4])
def test_several_graphs_store_what_they_share_once(tmp_path, level):
    report = optimize(encoder_decoder(tmp_path / "in"), tmp_path / "out", level=level)
    assert {change.name for change in report.components} == {"encoder", "decoder"}
    assert all(change.check.passed for change in report.components)
    assert not any(change.shared_cache for change in report.components)
    assert set(ModelDir.open(tmp_path / "out").components) == {"encoder", "decoder"}
    if level:
        graphs = [
            files.load_model(tmp_path / "out" / f"{name}_model.onnx") for name in ("encoder", "decoder")
        ]
        places = [
            {value.const_value.offset for value in graph.graph.initializers.values()
             if isinstance(value.const_value, ir.ExternalTensor)}
            for graph in graphs
        ]  # fmt: skip
        assert places[0] & places[1]


def test_the_number_of_logits_stays_an_optional_input(tmp_path):
    source = decoder(tmp_path / "in")
    case = feeds(DecoderSpec(), new=5)
    whole = open_session(source / "model.onnx", RuntimeOptions(threads=1)).run(case)["logits"]
    optimize(source, tmp_path / "out", level=3)
    options = QuantizeOptions(scheme="int8-weight", include=(".",), measure=False, threads=1)
    quantize_model(tmp_path / "out", tmp_path / "int8", options)
    for out, most in (("out", 1e-5), ("int8", 0.1)):
        session = open_session(tmp_path / out / "model.onnx", RuntimeOptions(threads=1))
        assert [spec.name for spec in session.overridable] == ["num_logits_to_keep"]
        all_of_them = session.run(case)["logits"]
        assert np.linalg.norm(all_of_them - whole) < most * np.linalg.norm(whole)
        bare = import_onnxruntime().InferenceSession(tmp_path / out / "model.onnx")
        one = bare.run(["logits"], {**case, "num_logits_to_keep": np.array(1)})[0]
        np.testing.assert_allclose(one, all_of_them[:, -1:], atol=1e-5)
