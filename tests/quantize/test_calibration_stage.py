"""int8-static from end to end where calibration matters: models that generate, the cache, bad samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxkit.errors import InputError, UsageError
from onnxkit.predictor import Predictor
from onnxkit.progress import Progress
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.quantize.calibration import ranges, runs, statistics
from onnxkit.quantize.calibration.calibrators import CALIBRATORS
from onnxkit.runtime import open_session
from tests.generating_models import TEMPLATE, language_model, translator
from tests.heard import Heard
from tests.quantize.graphs import ONE, cosine, mlp_dir, proto, random

TEXTS = ["the cat sat on the mat", "where is anna", "a good film in paris", "berlin, new york"]


def quantize(source: Path, out: Path, progress: Progress | None = None, **options):
    wanted = {"scheme": "int8-static", "include": (".",), "measure": False, "threads": 1, **options}
    return quantize_model(source, out, QuantizeOptions(**wanted), progress=progress)


def samples(folder: Path, column: str = "text") -> Path:
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in TEXTS))
    return path


@pytest.mark.parametrize("make", [language_model, translator])
@pytest.mark.parametrize("data", ["file", "random"])
def test_models_that_generate_become_static(tmp_path, make, data):
    source = make(tmp_path / "model")
    calibration = samples(tmp_path) if data == "file" else "random"
    report = quantize(source, tmp_path / "out", calibration=calibration, samples=4, smooth_quant="off")
    assert report.calibration.samples == 4
    assert ("random" in report.calibration.source) == (data == "random")
    components = {"encoder", "decoder"} if make is translator else {"model"}
    assert {layer.component for layer in report.quantized} == components
    before, after = (
        [record["text"] for record in Predictor(path, runtime=ONE)([{"text": TEXTS[0]}])]
        for path in (source, tmp_path / "out")
    )
    assert before and after


def test_chats_calibrate_through_the_template(tmp_path):
    source = language_model(tmp_path / "model", template=TEMPLATE)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    heard = Heard()
    quantize(source, tmp_path / "out", heard, calibration=tmp_path / "c.jsonl", smooth_quant="off")
    assert any("1 calibration sample is too few; about 32 would do" in text for text in heard.warnings)


@pytest.fixture
def tensors(tmp_path) -> Path:
    np.savez(tmp_path / "c.npz", x=random(8, 5, 32))
    return tmp_path / "c.npz"


@pytest.mark.parametrize("scheme", ["int8-static", "int4-weight"])
def test_a_layer_may_project_a_constant(tmp_path, tensors, scheme):
    """DeBERTa's layers project a table of relative positions with the weights that tokens meet."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["query"], name="query"),
        helper.make_node("MatMul", ["table", "weight"], ["key"], name="key"),
        helper.make_node("Transpose", ["key"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["query", "turned"], ["y"], name="scores"),
    ]
    weights = {"table": random(8, 32, seed=1), "weight": random(32, 32, seed=2)}
    source = mlp_dir(tmp_path / "model")
    onnx.save(proto(nodes, weights, inputs={"x": ["b", "n", 32]}), source / "model.onnx")
    report = quantize(source, tmp_path / "out", scheme=scheme, calibration=tensors)
    assert {layer.name for layer in report.quantized} == {"query", "key"}
    x = np.load(tensors)["x"]
    got = open_session(tmp_path / "out" / "model.onnx", ONE).run({"x": x})["y"]
    expected = x @ weights["weight"] @ (weights["table"] @ weights["weight"]).T
    assert cosine(got, expected) > 0.97


@pytest.mark.parametrize("calibrator", sorted(CALIBRATORS))
def test_every_calibrator_makes_a_model(tmp_path, tensors, calibrator):
    source = mlp_dir(tmp_path / "model")
    report = quantize(source, tmp_path / "out", calibration=tensors, calibrator=calibrator)
    assert report.calibration.method == calibrator
    assert len(report.quantized) == 2


def test_the_cache_spares_the_runs_and_gives_the_same(tmp_path, tensors):
    source, cache = mlp_dir(tmp_path / "model"), tmp_path / "cache.json"
    options = {"calibration": tensors, "calibration_cache": cache}
    quantize(source, tmp_path / "one", **options)
    heard = Heard()
    quantize(source, tmp_path / "two", heard, **options)
    assert any(str(cache) in note for note in heard.notes)
    one, two = ((tmp_path / name / "model.onnx").read_bytes() for name in ("one", "two"))
    assert one == two
    with pytest.raises(InputError, match="of another model"):
        quantize(mlp_dir(tmp_path / "other", seed=9), tmp_path / "three", **options)
    with pytest.raises(InputError, match="--calibrator"):
        quantize(source, tmp_path / "three", **options, calibrator="entropy")
    np.savez(tensors, x=random(8, 5, 32, seed=1))
    with pytest.raises(InputError, match="other calibration samples"):
        quantize(source, tmp_path / "three", **options)


def collecting(monkeypatch) -> list[str]:
    """The texts of the calibration runs from now on."""
    made: list[str] = []
    real = runs.runs

    def counted(*given, text: str = "calibrating", **more):
        made.append(text)
        return real(*given, text=text, **more)

    monkeypatch.setattr(statistics, "runs", counted)
    monkeypatch.setattr(ranges, "runs", counted)
    return made


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"algorithm": "rtn"}, []),
        ({"algorithm": "rtn", "bias_correction": True}, []),
        ({"algorithm": "rtn", "smooth_quant": 0.6, "format": "qdq"}, []),
        ({}, ["collecting statistics"]),  # GPTQ's Hessians
        ({"scheme": "int8-dynamic", "algorithm": "rtn"}, []),
        ({"scheme": "int4-weight", "algorithm": "awq"}, []),
        ({"scheme": "int4-weight", "algorithm": "search"}, []),
        ({"scheme": "mixed", "algorithm": "search", "bits_per_weight": 7.0, "measure": True}, []),
    ],
)
def test_the_cache_keeps_what_runs_would_find_again(tmp_path, tensors, monkeypatch, options, again):
    source, cache = mlp_dir(tmp_path / "model"), tmp_path / "cache.json"
    given = {"calibration": tensors, **options}
    quantize(source, tmp_path / "none", **given)
    quantize(source, tmp_path / "one", **given, calibration_cache=cache)
    text = cache.read_text()
    made = collecting(monkeypatch)
    report = quantize(source, tmp_path / "two", **given, calibration_cache=cache)
    assert made == again and cache.read_text() == text
    assert report.calibration is not None and report.calibration.samples in (7, 8)
    none, one, two = ((tmp_path / name / "model.onnx").read_bytes() for name in ("none", "one", "two"))
    assert none == one == two


def test_what_the_cache_has_not_is_found_and_added(tmp_path, tensors, monkeypatch):
    source, cache = mlp_dir(tmp_path / "model"), tmp_path / "cache.json"
    plain = {"calibration": tensors, "calibration_cache": cache, "algorithm": "rtn", "smooth_quant": "off"}
    quantize(source, tmp_path / "one", **plain)
    made = collecting(monkeypatch)
    quantize(source, tmp_path / "two", **plain, bias_correction=True)
    quantize(source, tmp_path / "three", **plain, bias_correction=True)
    assert made == ["collecting statistics"]


def test_the_lines_of_an_exclusion_file_belong_to_the_key(tmp_path, tensors):
    source, excluded = mlp_dir(tmp_path / "model"), tmp_path / "exclude.txt"
    excluded.write_text("layer.up\n")
    options = {"calibration": tensors, "calibration_cache": tmp_path / "cache.json"}
    quantize(source, tmp_path / "one", **options, exclude_from=excluded)
    with pytest.raises(InputError, match=r"--exclude-from layer\.up instead of None"):
        quantize(source, tmp_path / "two", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int4-weight"}, "keeps no Hessians, which gptq learns from"),
        ({"scheme": "int8-weight", "algorithm": "rtn"}, "has nothing to keep of rtn"),
        ({"scheme": "log8"}, "--calibration-cache applies to .*int8-static"),
    ],
)
def test_a_cache_that_would_spare_nothing_is_refused(tmp_path, tensors, options, message):
    data = {} if options["scheme"] == "log8" else {"calibration": tensors}
    with pytest.raises(UsageError, match=message):
        quantize(
            mlp_dir(tmp_path / "model"), tmp_path / "out", **data, **options,
            calibration_cache=tmp_path / "cache.json",
        )  # fmt: skip
    assert not (tmp_path / "cache.json").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": random(0, 5, 32)}, "holds no samples"),
        ({"x": random(2, 0, 32)}, r"c\.npz, row 1: this calibration sample is empty"),
        ({"x": np.full((2, 5, 32), np.nan, np.float32)}, r"c\.npz, row 1: this calibration sample makes NaN"),
        ({"y": random(2, 5, 32)}, "holds no columns|the model's inputs are|no 'x'|holds y"),
        ({"x": random(2, 5, 31)}, "31"),
    ],
)
def test_tensors_that_cannot_be_used_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(InputError, match=message):
        quantize(mlp_dir(tmp_path / "model"), tmp_path / "out", calibration=tmp_path / "c.npz")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_constant_data_gives_the_right_result(tmp_path, value):
    """Zeros say nothing of a scale: those layers stay float. Another constant is a range of its own."""
    np.savez(tmp_path / "c.npz", x=np.full((4, 5, 32), value, np.float32))
    source = mlp_dir(tmp_path / "model")
    if value == 0.0:
        report = quantize(source, tmp_path / "out", calibration=tmp_path / "c.npz", smooth_quant="off")
        assert [layer.name for layer in report.quantized] == ["layer.down"]
        assert ["was zero in every" in layer.reason for layer in report.kept] == [True]
    else:
        report = quantize(source, tmp_path / "out", calibration=tmp_path / "c.npz", smooth_quant="off")
        assert len(report.quantized) == 2
