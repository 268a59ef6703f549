"""Limits, mixed precision and analysis through the whole stage, on a small model."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest

from onnxkit.errors import GateFailed, UsageError
from onnxkit.quantize import QuantizeOptions, analyze_model, judge, quantize_model
from tests.quantize.graphs import mlp_dir
from tests.quantize.test_quantize_model import save_rows


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr(judge, "interleaved", partial(judge.interleaved, runs=5))


def options(**given) -> QuantizeOptions:
    return QuantizeOptions(**{"threads": 1, "include": (".",), **given})


def test_a_limit_that_holds_releases_nothing(tmp_path):
    report = quantize_model(mlp_dir(tmp_path / "in"), tmp_path / "out", options(min_cosine=0.9))
    assert len(report.quantized) == 2
    assert [attempt.holds for attempt in report.attempts] == [True]


def test_a_tight_limit_releases_the_sensitive_layer(tmp_path):
    source = mlp_dir(tmp_path / "in")
    whole = quantize_model(source, tmp_path / "a", options(scheme="int4-weight", embeddings="int4"))
    limit = whole.measurement.agreement[0].cosine + 1e-4
    report = quantize_model(
        source, tmp_path / "b", options(scheme="int4-weight", embeddings="int4", min_cosine=limit)
    )
    assert len(report.quantized) == 1
    assert len(report.attempts) == 2
    (kept,) = [layer for layer in report.kept if layer.reason.startswith("released")]
    assert kept.name not in {layer.name for layer in report.quantized}
    assert report.measurement.agreement[0].cosine >= limit


def test_a_limit_that_nothing_keeps_publishes_nothing(tmp_path):
    with pytest.raises(GateFailed, match=r"no variant keeps the limits; the nearest, .*: cosine") as caught:
        quantize_model(
            mlp_dir(tmp_path / "in"), tmp_path / "out", options(scheme="int4-weight", min_cosine=1.0)
        )
    assert caught.value.report.attempts
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(("bits", "formats"), [(5.0, {"int4"}), (6.8, {"int4", "int8"}), (9.5, {"int8"})])
def test_mixed_spends_its_bits(tmp_path, bits, formats):
    source = mlp_dir(tmp_path / "in", inner=128)
    report = quantize_model(source, tmp_path / "out", options(scheme="mixed", bits_per_weight=bits))
    assert {layer.format.split()[0] for layer in report.quantized} == formats
    assert report.bits_per_weight <= bits


def test_static_with_smoothing_correction_and_qdq(tmp_path):
    rows = save_rows(tmp_path / "rows.npz", 40)
    given = options(scheme="int8-static", calibration=rows, bias_correction=True, format="qdq")
    report = quantize_model(mlp_dir(tmp_path / "in"), tmp_path / "out", given)
    assert report.measurement.agreement[0].cosine > 0.998
    assert all("qdq" in layer.format for layer in report.quantized)


def test_a_calibration_cache_is_used_again(tmp_path):
    source, rows = mlp_dir(tmp_path / "in"), save_rows(tmp_path / "rows.npz", 40)
    given = options(scheme="int8-static", calibration=rows, calibration_cache=tmp_path / "c.json")
    found = []
    for name in ("a", "b"):
        quantize_model(source, tmp_path / name, given)
        found.append((tmp_path / name / "model.onnx").read_bytes())
    assert found[0] == found[1]
    assert (tmp_path / "c.json").is_file()


@pytest.mark.parametrize("algorithm", ["search", "k-quant", "hqq", "gptq", "awq"])
def test_every_algorithm_runs_on_data(tmp_path, algorithm):
    rows = save_rows(tmp_path / "rows.npz", 40)
    given = options(scheme="int4-weight", embeddings="int4", calibration=rows, algorithm=algorithm)
    report = quantize_model(mlp_dir(tmp_path / "in"), tmp_path / "out", given)
    assert {layer.format for layer in report.quantized} == {
        f"int4 in blocks of 32, with zero points, {algorithm}"
    }
    assert report.calibration is None or report.calibration.method == "statistics"
    assert report.measurement.agreement[0].cosine > 0.985


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static"])
def test_integer_weights_are_rounded_by_the_layers_error(tmp_path, scheme):
    rows = save_rows(tmp_path / "rows.npz", 40)
    given = options(scheme=scheme, calibration=rows, smooth_quant="off")
    report = quantize_model(mlp_dir(tmp_path / "in"), tmp_path / "out", given)
    assert all(layer.format.endswith(", gptq") for layer in report.quantized)
    assert report.measurement.agreement[0].cosine > 0.998
    nearest = dataclasses.replace(given, algorithm="rtn")
    report = quantize_model(tmp_path / "in", tmp_path / "nearest", nearest)
    assert not any("gptq" in layer.format for layer in report.quantized)
    with pytest.raises(UsageError, match="takes rtn or gptq"):
        quantize_model(tmp_path / "in", tmp_path / "b", dataclasses.replace(given, algorithm="hqq"))


def test_an_analysis_leaves_a_table_and_an_exclusion_file(tmp_path):
    source = mlp_dir(tmp_path / "in")
    analysis = analyze_model(source, tmp_path / "out", options())
    assert {layer.name for layer in analysis.layers} == {"layer.up", "layer.down"}
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())
    report = quantize_model(
        source, tmp_path / "q", options(exclude_from=tmp_path / "out" / "exclude.txt", include=())
    )
    assert len(report.quantized) == 1
    for wrong in ({"min_cosine": 0.9}, {"scheme": "fp16", "include": ()}):
        with pytest.raises(UsageError, match="--analyze"):
            analyze_model(source, tmp_path / "other", options(**wrong))
