"""Graphs of other tools whose inputs nobody can guess: what is said, and how the user gives real ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError
from onnxkit.measure import ProfileOptions, profile_model
from onnxkit.measure.made_up import run_all
from onnxkit.optimize import OptimizeOptions, optimize_model
from onnxkit.quantize import QuantizeOptions, judge, quantize_model
from onnxkit.runtime import RuntimeOptions, open_session
from tests.heard import Heard

WIDTH = 48


@pytest.fixture
def picky(tmp_path: Path) -> Path:
    """x [any, any] of which ONNX Runtime takes 48 columns only; the graph does not say so."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="up"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="down"),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, 64), "v": (64, 96)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    path = tmp_path / "picky.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def fitting(tmp_path: Path) -> Path:
    path = tmp_path / "real.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((6, WIDTH)).astype(np.float32))
    return path


def test_what_cannot_be_run_is_left_out_with_one_warning(picky: Path) -> None:
    session = open_session(picky, RuntimeOptions(threads=1))
    cases = [(f"{n} columns", {"x": np.ones((2, n), np.float32)}) for n in (3, WIDTH, 5)]
    heard = Heard()
    found = run_all(session, cases, heard, option="--inputs")
    assert [each.name for each in found] == [f"{WIDTH} columns"]
    assert found[0].outputs["y"].shape == (2, 96)
    (warning,) = heard.warnings
    assert warning.startswith("the input model cannot run '3 columns', '5 columns', which")


def test_optimize_takes_inputs_where_made_up_ones_do_not_fit(
    picky: Path, fitting: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"made up: give it some that fit with --inputs FILE\.npz$"):
        optimize_model(picky, tmp_path / "none", OptimizeOptions(measure=False, threads=1))
    options = OptimizeOptions(measure=False, threads=1, inputs=fitting)
    report = optimize_model(picky, tmp_path / "out", options)
    assert report.components[0].check.passed and report.components[0].check.cases == ("real.npz",)


def test_inputs_of_other_names_are_refused(picky: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", z=np.ones(3))
    options = OptimizeOptions(measure=False, inputs=tmp_path / "z.npz")
    with pytest.raises(InputError, match="x"):
        optimize_model(picky, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_profile_takes_inputs(picky: Path, fitting: Path) -> None:
    with pytest.raises(InputError, match=r"with --inputs FILE\.npz$"):
        profile_model([picky], ProfileOptions(runs=2, warmup=0))
    report = profile_model([picky], ProfileOptions(runs=2, warmup=0, inputs=fitting))
    (row,) = report.models[0].measurements
    assert row.batch == 6 and row.sequence is None
    assert {each.op for each in row.operators} == {"MatMul"}
    np.savez(fitting, x=np.ones((0, WIDTH), np.float32))
    with pytest.raises(InputError, match=r"real\.npz: x holds no row"):
        profile_model([picky], ProfileOptions(runs=2, warmup=0, inputs=fitting))


def test_quantize_measures_on_eval_where_made_up_inputs_do_not_fit(
    picky: Path, fitting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "interleaved", partial(judge.interleaved, runs=5))
    with pytest.raises(InputError, match=r"with --eval FILE\.npz$"):
        quantize_model(picky, tmp_path / "none", QuantizeOptions(include=(".",), threads=1))
    options = QuantizeOptions(include=(".",), threads=1, eval=fitting)
    report = quantize_model(picky, tmp_path / "out", options)
    assert report.measurement is not None and report.measurement.agreement[0].cosine > 0.99
