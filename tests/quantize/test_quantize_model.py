"""The stage as a whole, on directories."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.artifact import Invocation, ModelDir
from onnxkit.errors import GateFailed, InputError, UsageError
from onnxkit.graph import files
from onnxkit.quantize import QuantizeOptions, judge, quantize_model
from onnxkit.quantize.report import SpeedChange
from onnxkit.runtime import import_onnxruntime, open_session
from tests.encoder_graphs import EncoderSpec, build_encoder, feeds, save_plain
from tests.heard import Heard
from tests.model_dirs import VOCABULARY, WORDS, save_graph, save_tokenizer
from tests.quantize.graphs import ONE, cosine, mlp_dir, random

SLOWER = SpeedChange(shape="1x1", before_ms=1.0, after_ms=3.0, ratio=3.0, ratio_error=0.1, threads=1)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """Five rounds of timing are enough for a test."""
    monkeypatch.setattr(judge, "interleaved", partial(judge.interleaved, runs=5))


def run(source: Path, out: Path, **options):
    heard = Heard()
    report = quantize_model(source, out, QuantizeOptions(threads=1, **options), progress=heard)
    return report, heard


def save_rows(path: Path, count: int, *, scale: float = 1.0) -> Path:
    np.savez(path, x=random(count, 6, 32, seed=9, scale=scale))
    return path


def text_classifier(folder: Path) -> Path:
    """Mean of word vectors through two layers: "good" is label 1, "bad" is label 0."""
    width = 32
    table = random(len(VOCABULARY), width, scale=0.3)
    table[VOCABULARY["good"]] = 2.0
    table[VOCABULARY["bad"]] = -2.0
    head = np.stack([-np.ones(width), np.ones(width)], axis=1).astype(np.float32) / width
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["v"], name="embeddings.word"),
        helper.make_node("Cast", ["attention_mask"], ["m"], name="mask/cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["mc"], name="mask/column"),
        helper.make_node("Mul", ["v", "mc"], ["k"], name="mask"),
        helper.make_node("MatMul", ["k", "w"], ["h"], name="encoder.dense"),
        helper.make_node("ReduceSum", ["h", "middle"], ["p"], name="pool", keepdims=0),
        helper.make_node("Gemm", ["p", "head"], ["logits"], name="classifier"),
    ]
    shape = ["batch_size", "sequence_length"]
    save_graph(
        folder / "model.onnx",
        nodes,
        inputs=dict.fromkeys(("input_ids", "attention_mask"), (TensorProto.INT64, shape)),
        outputs={"logits": ["batch_size", 2]},
        weights={
            "table": table, "w": (np.eye(width) + random(width, width, scale=0.05)).astype(np.float32),
            "head": head, "last": np.array([-1]), "middle": np.array([1]),
        },
    )  # fmt: skip
    save_tokenizer(folder)
    labels = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **labels}
    config |= {"max_position_embeddings": 32, "vocab_size": len(VOCABULARY)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_texts(path: Path, count: int, *, labelled: bool = True) -> Path:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        label = ("bad", "good")[number % 2]
        words = [*rng.choice(WORDS[:12], int(rng.integers(1, 9))), label]
        rows.append({"text": " ".join(rng.permutation(words)), **({"label": label} if labelled else {})})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_dynamic_needs_no_data_and_says_what_it_measured_on(tmp_path):
    report, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out")
    assert [layer.name for layer in report.quantized] == ["layer.up", "layer.down"]
    assert report.calibration is None
    assert report.size_ratio < 0.4
    assert report.measurement.measured_on == "seeded random inputs"
    assert report.measurement.agreement[0].cosine > 0.99
    assert report.measurement.agreement[0].sqnr_db > 20
    assert any("seeded random inputs" in text for text in heard.warnings)
    opened = ModelDir.open(tmp_path / "out")
    assert opened.task == "raw"
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_file_holds_no_shapes_inside_and_keeps_names(tmp_path):
    run(mlp_dir(tmp_path / "in"), tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert not model.graph.value_info
    names = {node.name: node.op_type for node in model.graph.node}
    assert names["layer.up"] == names["layer.down"] == "MatMulIntegerToFloat"
    assert all(t.data_type != TensorProto.FLOAT or len(t.dims) < 2 for t in model.graph.initializer)


def test_history_has_the_figures_and_the_options(tmp_path):
    call = Invocation(stage="quantize", argv=("onnxkit", "quantize"), options={"samples": 128})
    report = quantize_model(
        mlp_dir(tmp_path / "in"),
        tmp_path / "out",
        QuantizeOptions(threads=1),
        progress=Heard(),
        invocation=call,
    )
    entry = ModelDir.open(tmp_path / "out").manifest.history[-1]
    assert entry.argv == ("onnxkit", "quantize")
    assert entry.measured["size_after_bytes"] == report.size_after_bytes
    assert entry.measured["measurement"]["agreement"][0]["cosine"] == report.measurement.agreement[0].cosine
    assert entry.measured["quantized_layers"] == 2


def test_static_with_raw_tensors(tmp_path):
    rows = save_rows(tmp_path / "c.npz", 40)
    options = {"scheme": "int8-static", "calibration": rows}
    report, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", **options)
    assert (report.calibration.samples, report.calibration.available) == (32, 40)
    assert report.measurement.measured_on == f"{rows}, kept out of calibration"
    assert report.measurement.samples == 8
    assert report.measurement.agreement[0].cosine > 0.99
    assert not [text for text in heard.warnings if "too few" in text or "say" in text]
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(tmp_path / "out" / "model.onnx").graph.node}


def test_a_folder_of_ragged_tensors(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for number, length in enumerate((3, 8, 5, 1, 2, 6)):
        np.savez(folder / f"{number}.npz", x=random(2, length, 32, seed=number))
    options = {"scheme": "int8-static", "calibration": folder, "eval": save_rows(tmp_path / "e.npz", 4)}
    report, _ = run(mlp_dir(tmp_path / "in"), tmp_path / "out", **options)
    assert report.calibration.samples == 12
    assert report.measurement.samples == 4


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static"])
def test_text_with_labels_has_its_metric(tmp_path, scheme):
    source = text_classifier(tmp_path / "in")
    data = save_texts(tmp_path / "c.jsonl", 60)
    held = save_texts(tmp_path / "e.jsonl", 40)
    calibration = data if scheme == "int8-static" else None
    report, _ = run(source, tmp_path / "out", scheme=scheme, calibration=calibration, eval=held)
    metric = report.measurement.metric
    assert (metric.name, metric.before, metric.samples) == ("accuracy", 1.0, 40)
    assert metric.after >= 0.99
    assert report.measurement.measured_on == str(held)
    assert {layer.name: layer.reason for layer in report.kept}["classifier"].startswith("fewer than 1024")
    opened = ModelDir.open(tmp_path / "out")
    assert opened.task == "text-classification"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_samples_without_labels_are_compared_only(tmp_path):
    source = text_classifier(tmp_path / "in")
    data = save_texts(tmp_path / "c.jsonl", 60, labelled=False)
    report, _ = run(source, tmp_path / "out", scheme="int8-static", calibration=data, samples=16)
    assert report.measurement.metric is None
    assert report.calibration.samples == 16
    assert report.measurement.samples == 44


def test_static_without_calibration_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="int8-static needs a calibration set"):
        run(mlp_dir(tmp_path / "in"), tmp_path / "out", scheme="int8-static")


def test_no_measure_says_so(tmp_path):
    report, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", measure=False)
    assert report.measurement is None
    assert any("not measured" in text for text in heard.notes)
    with pytest.raises(UsageError, match="exclude one another"):
        run(tmp_path / "in", tmp_path / "out2", measure=False, eval=tmp_path / "e.npz")


def test_a_slower_result_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "_timed", lambda *_: SLOWER)
    _, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out")
    assert "the quantized model is slower than its input: 3.00 ± 0.10 times as long (1x1)" in heard.warnings


def test_what_lies_within_the_noise_is_no_warning(tmp_path, monkeypatch):
    noisy = dataclasses.replace(SLOWER, ratio=1.05, ratio_error=0.2)
    monkeypatch.setattr(judge, "_timed", lambda *_: noisy)
    _, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out")
    assert not [text for text in heard.warnings if "its input" in text]
    assert "the quantized model is no faster than its input: 1.05 ± 0.20 times as long (1x1)" in heard.notes


@pytest.mark.parametrize("measure", [False, True])
def test_a_calibration_set_that_teaches_nothing_is_said_to(tmp_path, measure):
    """Where the result is measured on a part of it, it serves for that."""
    given = {"scheme": "int4-weight", "algorithm": "rtn", "calibration": save_rows(tmp_path / "c.npz", 40)}
    report, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", measure=measure, **given)
    assert report.calibration is None
    said = [text for text in heard.notes if "was learnt from" in text]
    assert len(said) == (0 if measure else 1)


def test_a_target_that_is_another_machine_is_not_judged_by_this_ones_speed(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "_timed", lambda *_: SLOWER)
    _, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", target="cuda")
    assert "speed is that of this machine, not of an NVIDIA GPU" in heard.notes
    assert not [text for text in heard.warnings if "slower" in text]
    assert any("no CUDA kernels for these 8-bit products" in text for text in heard.warnings)


def test_quantizing_twice_is_refused(tmp_path):
    run(mlp_dir(tmp_path / "in"), tmp_path / "out", measure=False)
    with pytest.raises(InputError, match="already quantized"):
        run(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    source, rows = mlp_dir(tmp_path / "in"), save_rows(tmp_path / "c.npz", 40)
    found = []
    for name in ("a", "b"):
        run(source, tmp_path / name, scheme="int8-static", calibration=rows, measure=False)
        found.append((tmp_path / name / "model.onnx").read_bytes())
    assert found[0] == found[1]


def test_weights_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "EMBEDDED_BYTES", 1000)
    source = mlp_dir(tmp_path / "in")
    model = onnx.load(source / "model.onnx")
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=1024)
    rows = save_rows(tmp_path / "c.npz", 40)
    report, _ = run(source, tmp_path / "out", scheme="int8-static", calibration=rows)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "model.onnx.data"} <= written
    assert not {"w.bin", ".calibration"} & written
    assert report.measurement.agreement[0].cosine > 0.99
    files_size = sum((tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert report.size_after_bytes == files_size


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_weight_is_named(tmp_path, bad):
    source = mlp_dir(tmp_path / "in")
    model = onnx.load(source / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "down.weight")
    broken = numpy_helper.to_array(weight).copy()
    broken[3, 4] = bad
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    onnx.save(model, source / "model.onnx")
    with pytest.raises(InputError, match=r"layer 'layer\.down'.*NaN or infinite.*'down\.weight'"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_result_with_nan_is_not_published_and_the_layer_is_named(tmp_path):
    """A range of 6e38 has no float32 scale: float survives it, DynamicQuantizeLinear does not."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="fine"),
        helper.make_node("Mul", ["h", "zero"], ["z"], name="zeroed"),
        helper.make_node("Add", ["z", "wide"], ["e"], name="widened"),
        helper.make_node("MatMul", ["e", "b"], ["y"], name="layer.wide"),
    ]
    wide = np.zeros(32, np.float32)
    wide[:2] = 3e38, -3e38
    small = random(32, 32)
    small[:2] = 1e-30
    weights = {"a": random(32, 32), "b": small, "zero": np.zeros(32, np.float32), "wide": wide}
    shape = ["batch_size", 32]
    save_graph(
        tmp_path / "in" / "model.onnx", nodes, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={"y": shape},
        weights=weights,
    )  # fmt: skip
    with pytest.raises(GateFailed, match=r"not finite.*layer 'layer\.wide'.*--exclude"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report, _ = run(tmp_path / "in", tmp_path / "out", exclude=("wide",))
    assert [layer.name for layer in report.quantized] == ["fine"]


def test_a_constant_activation_stays_float(tmp_path):
    rows = tmp_path / "c.npz"
    np.savez(rows, x=np.zeros((40, 3, 32), np.float32))
    report, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", scheme="int8-static", calibration=rows)
    assert {layer.name: layer.reason for layer in report.kept}["layer.up"].startswith(
        "its input or output was zero"
    )
    assert [layer.name for layer in report.quantized] == ["layer.down"]
    assert any("samples are the same" in text for text in heard.warnings)


def test_too_few_samples_is_a_warning_with_a_number(tmp_path):
    rows = save_rows(tmp_path / "c.npz", 1)
    _, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", scheme="int8-static", calibration=rows)
    assert any("1 calibration sample is too few; about 32 would do" in text for text in heard.warnings)


def test_bad_calibration_sets(tmp_path):
    source = text_classifier(tmp_path / "in")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"sentence": "a cat"}\n' * 8)
    for path, message in (
        (empty, "no samples"),
        (wrong, "text"),
        (tmp_path / "missing.jsonl", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            run(source, tmp_path / "out", scheme="int8-static", calibration=path)
    report, _ = run(
        source, tmp_path / "out", scheme="int8-static", calibration=wrong, columns={"text": "sentence"}
    )
    assert report.calibration.distinct == 1


def test_an_existing_output_needs_overwrite(tmp_path):
    source = mlp_dir(tmp_path / "in")
    run(source, tmp_path / "out", measure=False)
    with pytest.raises(UsageError, match="exists"):
        run(source, tmp_path / "out", measure=False)
    run(source, tmp_path / "out", measure=False, overwrite=True)


def test_calibration_that_nothing_would_read_is_a_usage_error(tmp_path):
    rows = save_rows(tmp_path / "c.npz", 4)
    with pytest.raises(UsageError, match="log8 takes no calibration set"):
        run(mlp_dir(tmp_path / "in"), tmp_path / "out", scheme="log8", calibration=rows, measure=False)
    report, _ = run(tmp_path / "in", tmp_path / "out", scheme="log8", calibration=rows)
    assert report.measurement.measured_on == str(rows)


def test_measuring_on_the_calibration_set_is_said(tmp_path):
    rows = save_rows(tmp_path / "c.npz", 40)
    options = {"scheme": "int8-static", "calibration": rows, "eval": rows}
    report, heard = run(mlp_dir(tmp_path / "in"), tmp_path / "out", **options)
    assert report.measurement.measured_on.endswith("the calibration set itself")
    assert any("calibration set itself" in text for text in heard.warnings)


def test_one_scale_per_tensor(tmp_path):
    report, _ = run(mlp_dir(tmp_path / "in"), tmp_path / "out", per_channel=False)
    scales = [
        t for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer if t.name.endswith(".scale")
    ]
    assert scales
    assert all(len(set(numpy_helper.to_array(scale).tolist())) == 1 for scale in scales)
    assert report.measurement.agreement[0].cosine > 0.99


@pytest.mark.parametrize("seed", [0, 1])
def test_no_worse_than_stock_dynamic_quantization(tmp_path, seed):
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = tmp_path / "in"
    source.mkdir()
    save_plain(build_encoder(EncoderSpec(layers=4), seed=seed), source / "model.onnx")
    stock = tmp_path / "stock.onnx"
    quantize_dynamic(source / "model.onnx", stock, weight_type=QuantType.QInt8, per_channel=True)
    run(source, tmp_path / "out", measure=False)
    sessions = [
        open_session(path, ONE) for path in (source / "model.onnx", stock, tmp_path / "out" / "model.onnx")
    ]
    found = []
    for case in range(6):
        given = feeds(4, 12, padding="right", seed=case)
        right, theirs, ours = (one.run(given)["last_hidden_state"] for one in sessions)
        valid = given["attention_mask"].astype(bool)
        found.append((cosine(ours[valid], right[valid]), cosine(theirs[valid], right[valid])))
    ours, theirs = np.mean(found, axis=0)
    assert ours >= theirs


def test_mixed_learns_for_every_format_that_a_layer_may_get(tmp_path):
    rows = save_rows(tmp_path / "c.npz", 40)
    report, _ = run(
        mlp_dir(tmp_path / "in"), tmp_path / "out", scheme="mixed", bits_per_weight=5.0, calibration=rows,
        include=("layer.down",),
    )  # fmt: skip
    [layer] = report.quantized
    assert "gptq" in layer.format  # an output head begins with 8 bits, which no Hessian is needed for
