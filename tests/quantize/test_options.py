"""Options that do not fit one another are refused before any work, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError, UsageError
from onnxkit.quantize import QuantizeOptions, analyze_model, quantize_model
from onnxkit.quantize.formats import BlockFormat
from onnxkit.quantize.options import checked, holds_out
from onnxkit.quantize.search.allocation import check_budget
from onnxkit.quantize.search.quality import Gates, Quality
from onnxkit.quantize.search.units import Layer, units_of
from tests.heard import Heard
from tests.quantize.graphs import mlp, mlp_dir, proto, random


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheme": "mixed"}, "--analyze takes one format for all layers"),
        ({"genai_config": True}, "--analyze writes no model: leave --genai-config away"),
        ({"measure": False}, "--analyze and --no-measure exclude one another"),
        ({"min_cosine": 0.9}, "a limit does not apply to it"),
    ],
)
def test_what_an_analysis_does_not_take(given, message):
    with pytest.raises(UsageError, match=message):
        checked(QuantizeOptions(**given), analyze=True)


def test_a_limit_must_be_measured():
    with pytest.raises(UsageError, match="leave --no-measure away"):
        checked(QuantizeOptions(min_cosine=0.9, measure=False))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"measure": False}, False),
        ({"scheme": "mixed", "measure": False}, True),
        ({"scheme": "mixed", "eval": Path("eval.txt")}, False),
    ],
)
def test_samples_are_kept_out_for_whatever_is_measured(given, expected):
    """The layers of a mixed scheme are measured, whether or not the result is."""
    assert holds_out(QuantizeOptions(**given)) is expected


@pytest.mark.parametrize("limit", ["max_drop", "max_kl", "max_worst_slice"])
def test_a_limit_without_the_samples_it_needs_is_refused_and_leaves_nothing(tmp_path, limit):
    source = mlp_dir(tmp_path / "in")
    wanted = QuantizeOptions(threads=1, include=(".",), **{limit: 1.0})
    with pytest.raises(UsageError, match=f"--{limit.replace('_', '-')} needs"):
        quantize_model(source, tmp_path / "out", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_budget_that_nothing_fits_leaves_nothing_and_names_one_that_fits(tmp_path):
    source = mlp_dir(tmp_path / "in")
    wanted = QuantizeOptions(scheme="mixed", bits_per_weight=3, threads=1, include=(".",))
    with pytest.raises(UsageError, match="the smallest formats need"):
        quantize_model(source, tmp_path / "out", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_budget_that_is_named_fits():
    layer = Layer(
        component="model", name="a", op_type="MatMul", weight="w", parameters=3 << 10, depth=1 << 10
    )  # fmt: skip
    units = units_of([layer])
    narrow = BlockFormat(bits=4, size=32, symmetric=False)  # 4.625 bits
    with pytest.raises(UsageError) as caught:
        check_budget({units[0]: narrow}, 4.0)
    named = float(str(caught.value).split("need ")[1].split()[0])
    assert named == 4.63
    check_budget({units[0]: narrow}, named)


def test_slow_blocks_are_said_of_products_only(tmp_path):
    source = mlp_dir(tmp_path / "in")
    told = []
    for scheme in ("int8-weight", "int4-weight"):
        heard = Heard()
        wanted = QuantizeOptions(
            scheme=scheme, include=("up",), target="avx2", threads=1, measure=False
        )  # fmt: skip
        quantize_model(source, tmp_path / scheme, wanted, progress=heard)
        told.append(any("8-bit blocks are slower" in text for text in heard.warnings))
    assert told == [True, False]


def tied_dir(path: Path) -> Path:
    """ids [B,S] -> table -> product with the table's transpose -> y [B,S,256]."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["h"], name="table"),
        helper.make_node("Transpose", ["table"], ["t"], name="t", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="head"),
    ]
    inputs = {"input_ids": ["batch", "sequence"]}
    path.mkdir()
    model = proto(nodes, {"table": random(256, 32)}, inputs=inputs, ids=True)
    onnx.save(model, path / "model.onnx")
    return path


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int4-weight"])
def test_what_a_table_and_its_head_share_counts_once(tmp_path: Path, scheme: str):
    wanted = QuantizeOptions(scheme=scheme, include=(".",), threads=1, measure=False)
    report = quantize_model(tied_dir(tmp_path / "in"), tmp_path / "out", wanted)
    assert {layer.name: layer.shares for layer in report.quantized} == {"table": None, "head": "table"}
    model = onnx.load(tmp_path / "out/model.onnx")
    kinds = (TensorProto.INT8, TensorProto.UINT8)
    codes = [t for t in model.graph.initializer if t.data_type in kinds and len(t.dims) > 1]
    assert sum(len(t.raw_data) for t in codes) == 256 * 32  # one copy, 8 bits
    assert report.bits_per_weight == report.quantized[0].bits_per_weight


def test_an_exclusion_file_that_cannot_be_read_is_named(tmp_path):
    source = mlp_dir(tmp_path / "in")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x9a")
    for name, why in (("none", "No such file"), ("bytes", "no text in UTF-8")):
        with pytest.raises(InputError, match=f"--exclude-from .*{name}: .*{why}"):
            analyze_model(
                source, tmp_path / "out", QuantizeOptions(exclude_from=tmp_path / name, threads=1)
            )  # fmt: skip


@pytest.mark.parametrize(
    ("cosine", "limit", "text"),
    [
        (0.98, 0.995, "cosine 0.98000 is below 0.995"),
        (0.9999996, 0.9999999, "cosine 0.9999996 is below 0.9999999"),
        (0.99999, 1.0, "cosine 0.99999 is below 1"),
    ],
)
def test_a_cosine_that_misses_narrowly_is_told_from_its_limit(cosine, limit, text):
    assert Gates(min_cosine=limit).broken(Quality(cosine=cosine)) == (text,)


@pytest.mark.parametrize("scheme", ["log8", "log4"])
def test_logarithmic_codes_are_told_from_half_precision(tmp_path, scheme):
    source = mlp_dir(tmp_path / "in")
    quantize_model(
        source, tmp_path / "log", QuantizeOptions(scheme=scheme, include=(".",), threads=1, measure=False)
    )  # fmt: skip
    with pytest.raises(InputError, match="its weights are logarithmic codes"):
        quantize_model(tmp_path / "log", tmp_path / "out", QuantizeOptions(threads=1))


@pytest.mark.parametrize("scheme", ["int8-static", "int4-weight"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weight: np.where(weight == weight.max(), np.nan, weight),
            "'up.weight', which layer 'layer.up'",
        ),
        (lambda weight: weight * 1e30, "squares float32 does not hold"),
    ],
)
def test_with_samples_a_bad_weight_is_what_is_blamed(tmp_path, scheme, change, message):
    model = mlp()
    stored = next(each for each in model.graph.initializer if each.name == "up.weight")
    changed = change(numpy_helper.to_array(stored)).astype(np.float32)
    stored.CopyFrom(numpy_helper.from_array(changed, stored.name))
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in/model.onnx")
    wanted = QuantizeOptions(scheme=scheme, calibration="random", include=(".",), threads=1)
    with pytest.raises(InputError, match=message):
        quantize_model(tmp_path / "in", tmp_path / "out", wanted)
