"""The stage on small directories: what is published, what is refused, what is left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.errors import GateFailed, InputError, UsageError
from onnxkit.graph import files, fusions, ort_cpu, ort_shared
from onnxkit.graph.lowering import Draft, Lowering
from onnxkit.graph.ort_shared import projection
from onnxkit.optimize import LEVELS, OptimizeOptions, dialects, optimize_model
from onnxkit.progress import Progress
from onnxkit.runtime import RuntimeOptions, open_session
from tests.encoder_graphs import HEADS, VOCABULARY, WIDTH, EncoderSpec, build_encoder, feeds, save_plain
from tests.heard import Heard

CONFIG = {
    "model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": 64,
    "num_attention_heads": HEADS, "hidden_size": WIDTH, "architectures": ["BertModel"],
}  # fmt: skip


def directory(path: Path, spec: EncoderSpec | None = None, *, regions: bool = True, seed: int = 0) -> Path:
    path.mkdir()
    save_plain(build_encoder(spec, seed=seed), path / "model.onnx", regions=regions)
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def optimize(source: Path, out: Path, progress: Progress | None = None, **options):
    settings = OptimizeOptions(measure=options.pop("measure", False), threads=1, **options)
    return optimize_model(source, out, settings, progress=progress)


def outputs(path: Path, case) -> np.ndarray:
    session = open_session(path / "model.onnx", RuntimeOptions(threads=1))
    return session.run({s.name: case[s.name] for s in session.inputs})["last_hidden_state"]


def test_our_own_graph_is_lowered_and_sealed(tmp_path):
    source = directory(tmp_path / "in")
    report = optimize(source, tmp_path / "out")
    change = report.components[0]
    assert change.fused == {"Attention": 2, "Gelu": 2}
    assert change.lowered == {"packed-attention": 2, "gelu": 2}
    assert not change.recognized
    assert sum(change.nodes_after.values()) < sum(change.nodes_before.values()) / 2
    manifest = ModelDir.open(tmp_path / "out").manifest
    assert manifest.verified.passed
    assert "left padding" in manifest.verified.cases
    assert manifest.history[-1].options["level"]["value"] == 2
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("level", [level.number for level in LEVELS])
def test_every_level_computes_what_its_input_computes(tmp_path, level, padding):
    source = directory(tmp_path / "in")
    optimize(source, tmp_path / "out", level=level)
    case = feeds(3, 9, padding=padding)
    valid = case["attention_mask"].astype(bool)
    before, after = outputs(source, case)[valid], outputs(tmp_path / "out", case)[valid]
    assert np.abs(after - before).max() <= {0: 0.0, 3: 1e-3, 4: 1e-2}.get(level, 1e-4) * np.abs(before).max()


def test_level_0_copies_the_very_bytes(tmp_path):
    source = directory(tmp_path / "in")
    optimize(source, tmp_path / "out", level=0)
    assert (tmp_path / "out/model.onnx").read_bytes() == (source / "model.onnx").read_bytes()


def test_level_1_keeps_regions_and_standard_operators(tmp_path):
    optimize(directory(tmp_path / "in"), tmp_path / "one", level=1)
    model = onnx.load(tmp_path / "one/model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    report = optimize(tmp_path / "one", tmp_path / "two")
    assert report.components[0].lowered == {"packed-attention": 2, "gelu": 2}


def test_optimizing_twice_gives_the_same_graph(tmp_path):
    source = directory(tmp_path / "in", EncoderSpec(rotary=True))
    optimize(source, tmp_path / "once")
    report = optimize(tmp_path / "once", tmp_path / "twice")
    assert report.components[0].lowered == {}
    assert (tmp_path / "once/model.onnx").read_bytes() == (tmp_path / "twice/model.onnx").read_bytes()
    assert len(ModelDir.open(tmp_path / "twice").manifest.history) == 2


def test_what_a_first_run_left_primitive_a_second_lowers(tmp_path):
    source = directory(tmp_path / "in", EncoderSpec(cross=True))
    first = optimize(source, tmp_path / "first", disable_fusions=("attention",)).components[0]
    assert first.fused == {"Attention": 1, "Gelu": 2}
    assert first.kept[0].op == "attention"
    second = optimize(tmp_path / "first", tmp_path / "second").components[0]
    assert second.fused == {"Attention": 1, "MultiHeadAttention": 1, "Gelu": 2}


def test_no_value_info_and_no_skip_layer_norm_on_the_cpu(tmp_path):
    optimize(directory(tmp_path / "in"), tmp_path / "out")
    model = onnx.load(tmp_path / "out/model.onnx")
    assert not model.graph.value_info
    assert "SkipLayerNormalization" not in {node.op_type for node in model.graph.node}


def test_a_foreign_graph_is_recognized_by_structure(tmp_path):
    report = optimize(directory(tmp_path / "in", regions=False), tmp_path / "out")
    change = report.components[0]
    assert change.recognized
    assert change.fused == {"Attention": 2, "Gelu": 2}


def test_a_bare_file_can_be_optimized(tmp_path):
    save_plain(build_encoder(), tmp_path / "some.onnx")
    report = optimize(tmp_path / "some.onnx", tmp_path / "out")
    assert report.components[0].fused == {"Attention": 2, "Gelu": 2}


def test_disabled_fusions_stay_out(tmp_path):
    names = ("packed-attention", "gelu")
    report = optimize(directory(tmp_path / "in"), tmp_path / "out", disable_fusions=names)
    assert report.components[0].fused == {"MultiHeadAttention": 2}


def test_an_unknown_fusion_offers_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="packed-attention"):
        optimize(directory(tmp_path / "in"), tmp_path / "out", disable_fusions=("packd-attention",))
    assert not (tmp_path / "out").exists()


def test_a_fusion_of_another_provider_is_unknown_here(tmp_path):
    with pytest.raises(UsageError, match="skip-layer-norm"):
        optimize(directory(tmp_path / "in"), tmp_path / "out", disable_fusions=("skip-layer-norm",))


@pytest.mark.parametrize("options", [{"level": 5}, {"ep": "gpu3"}, {"ep": "tensorrt"}])
def test_what_does_not_exist_is_a_usage_error(tmp_path, options):
    with pytest.raises(UsageError):
        optimize(directory(tmp_path / "in"), tmp_path / "out", **options)


def test_an_existing_output_is_refused_and_left_alone(tmp_path):
    source = directory(tmp_path / "in")
    optimize(source, tmp_path / "out")
    before = (tmp_path / "out/model.onnx").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        optimize(source, tmp_path / "out", level=1)
    assert (tmp_path / "out/model.onnx").read_bytes() == before
    optimize(source, tmp_path / "out", level=1, overwrite=True)
    assert (tmp_path / "out/model.onnx").read_bytes() != before


def test_a_damaged_model_is_an_input_error(tmp_path):
    source = directory(tmp_path / "in")
    (source / "model.onnx").write_bytes((source / "model.onnx").read_bytes()[:1000])
    with pytest.raises(InputError):
        optimize(source, tmp_path / "out")


def lengths_only(draft: Draft) -> ir.Value:
    """Packed attention as other tools write it: the mask as row lengths, right for right padding alone."""
    region = draft.region
    parts = [projection(region.inputs[role]) for role in "qkv"]
    mask = draft.masks[region.inputs["mask"]].inputs["padding"]
    counted = draft.shared((mask,), "Cast", [mask], to=int(ir.DataType.INT32))
    axis = draft.constant(np.array([1], np.int64))
    lengths = draft.shared((counted,), "ReduceSum", [counted, axis], keepdims=0)
    weight = ort_shared._packed(draft, f"{region.id}.w", [p.weight for p in parts], axis=1)
    bias = ort_shared._packed(draft, f"{region.id}.b", [p.bias for p in parts], axis=0)
    return draft.microsoft("Attention", [parts[0].x, weight, bias, lengths], num_heads=HEADS)


@pytest.mark.parametrize("regions", [True, False], ids=["ours", "foreign"])
def test_a_fusion_that_is_wrong_for_left_padding_is_caught_and_left_out(tmp_path, monkeypatch, regions):
    wrong = Lowering(name="packed-attention", op="attention", apply=lengths_only, summary="")
    rows = (wrong, *ort_cpu.LOWERINGS[1:])
    provider = "CPUExecutionProvider"
    monkeypatch.setitem(
        dialects.DIALECTS, provider, dataclasses.replace(dialects.DIALECTS[provider], lowerings=rows)
    )
    source, heard = directory(tmp_path / "in", regions=regions), Heard()
    change = optimize(source, tmp_path / "out", heard).components[0]
    assert change.fused == {"MultiHeadAttention": 2, "Gelu": 2}
    assert [(each.name, each.case) for each in change.dropped] == [("packed-attention", "left padding")]
    assert "packed-attention is left out" in heard.warnings[0]
    case = feeds(3, 9, padding="left")
    valid = case["attention_mask"].astype(bool)
    np.testing.assert_allclose(
        outputs(tmp_path / "out", case)[valid], outputs(source, case)[valid], atol=1e-4
    )


def test_what_nothing_mends_fails_the_gate_and_publishes_nothing(tmp_path, monkeypatch):
    def spoil(model: ir.Model) -> None:
        weight = next(v for v in model.graph.initializers.values() if v.name.endswith("down.weight"))
        weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name=weight.name)

    monkeypatch.setattr("onnxkit.optimize.rewrite.clean_up", spoil)
    with pytest.raises(GateFailed, match="last_hidden_state") as failure:
        optimize(directory(tmp_path / "in"), tmp_path / "out")
    assert not failure.value.report.components[0].check.passed
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_approximation_beyond_the_tolerance_is_left_out(tmp_path, monkeypatch):
    rough = dataclasses.replace(fusions.FAST_GELU, apply=quick_gelu)
    provider = "CPUExecutionProvider"
    dialect = dataclasses.replace(dialects.DIALECTS[provider], approximations=(rough,))
    monkeypatch.setitem(dialects.DIALECTS, provider, dialect)
    change = optimize(directory(tmp_path / "in"), tmp_path / "out", level=3).components[0]
    assert [each.name for each in change.dropped] == ["fast-gelu"]
    assert change.fused == {"Attention": 2, "Gelu": 2}


def quick_gelu(model: ir.Model) -> int:
    found = [node for node in model.graph if node.op_type == "Gelu"]
    for node in found:
        node.op_type = "QuickGelu"
    return len(found)


def test_level_4_halves_the_weights_and_keeps_the_interface(tmp_path):
    source = directory(tmp_path / "in", EncoderSpec(layers=4))
    report = optimize(source, tmp_path / "out", level=4)
    assert report.size_after_bytes < 0.7 * report.size_before_bytes
    before, after = ModelDir.open(source), ModelDir.open(tmp_path / "out")
    assert after.outputs[0].dtype == "float32"
    assert [(s.name, s.dtype) for s in after.inputs] == [(s.name, s.dtype) for s in before.inputs]


def test_level_4_keeps_in_float32_what_overflows(tmp_path):
    model = build_encoder(EncoderSpec(layers=4))
    # A massive activation: the second layer's inner product leaves float16's range, a norm brings it back.
    for name, factor in (("encoder.layer.1.up", 400.0), ("encoder.layer.1.down", 400.0)):
        weight = model.graph.initializers[f"{name}.weight"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name=weight.name)
    source = tmp_path / "in"
    source.mkdir()
    save_plain(model, source / "model.onnx")
    (source / "config.json").write_text(json.dumps(CONFIG))
    heard = Heard()
    change = optimize(source, tmp_path / "out", heard, level=4).components[0]
    assert change.check.passed
    assert "encoder.layer.1.down" in change.kept_float32
    assert "encoder.layer.3.down" not in change.kept_float32


def bfloat16(path: Path) -> Path:
    source = directory(path)
    proto = onnx.load(source / "model.onnx")
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).clip(-1e38, 1e38)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(ml_dtypes.bfloat16), tensor.name))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    onnx.save(proto, source / "model.onnx")
    return source


@pytest.mark.parametrize(
    ("ep", "fused"), [("cpu", set()), ("cuda", {"Attention", "BiasGelu", "SkipLayerNormalization"})]
)
def test_bfloat16_is_checked_as_float32(tmp_path, ep, fused):
    heard = Heard()
    change = optimize(bfloat16(tmp_path / "in"), tmp_path / "out", heard, ep=ep).components[0]
    assert set(change.fused) == fused
    assert change.check.tolerance == 5e-2
    assert change.check.worst < 1e-4
    assert any("bfloat16" in text for text in heard.warnings)
    with pytest.raises(UsageError, match="-O3"):
        optimize(tmp_path / "in", tmp_path / "other", level=4)


def test_a_copy_of_bfloat16_is_checked_as_float32_too(tmp_path):
    change = optimize(bfloat16(tmp_path / "in"), tmp_path / "out", level=0).components[0]
    assert change.check.passed and change.check.worst == 0
    assert (tmp_path / "out/model.onnx").read_bytes() == (tmp_path / "in/model.onnx").read_bytes()


def test_weights_over_the_threshold_go_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "EMBEDDED_BYTES", 1000)
    source = directory(tmp_path / "in")
    for level in (1, 2, 4):
        out = tmp_path / f"out{level}"
        optimize(source, out, level=level)
        assert (out / "model.onnx.data").stat().st_size > 1000
        assert (out / "model.onnx").stat().st_size < 60_000
        again = optimize(out, tmp_path / f"again{level}", level=level)
        assert again.components[0].check.passed
    optimize(tmp_path / "out1", tmp_path / "copy", level=0)
    assert (tmp_path / "copy/model.onnx.data").is_file()


def test_speed_is_measured_and_slower_is_said(tmp_path, monkeypatch):
    report = optimize(directory(tmp_path / "in"), tmp_path / "out", measure=True)
    speed = report.components[0].speed
    assert speed.case == "left padding"
    assert 0.1 < speed.ratio < 10
    slower = dataclasses.replace(speed, ratio=1.5, slower=True)
    monkeypatch.setattr("onnxkit.optimize.gate.measure_speed", lambda *_: slower)
    heard = Heard()
    optimize(tmp_path / "in", tmp_path / "other", heard, measure=True)
    assert any("times as long" in text for text in heard.warnings)


def test_cuda_graphs_are_built_and_checked_on_the_cpu_where_there_is_no_device(tmp_path):
    heard = Heard()
    change = optimize(directory(tmp_path / "in"), tmp_path / "out", heard, ep="cuda", level=2).components[0]
    assert change.fused["SkipLayerNormalization"] == 3
    assert change.fused["Attention"] == 2
    assert change.check.passed
    if change.check.provider == "CPUExecutionProvider":
        assert "checked on the CPU" in heard.warnings[0]


@pytest.mark.gpu
def test_cuda_graphs_run_on_the_device(tmp_path):
    for level in (2, 3, 4):
        change = optimize(
            directory(tmp_path / f"in{level}"), tmp_path / f"out{level}", ep="cuda", level=level
        )
        assert change.components[0].check.provider == "CUDAExecutionProvider"


def test_a_graph_that_rounds_activations_is_judged_by_its_grid(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    source = directory(tmp_path / "in")
    quantization.quantize_dynamic(source / "model.onnx", tmp_path / "model.onnx")
    (tmp_path / "model.onnx").replace(source / "model.onnx")
    change = optimize(source, tmp_path / "out").components[0]
    assert change.check.tolerance == 5e-2
    assert change.check.passed
