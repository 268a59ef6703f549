"""Ranges from samples: the same as a naive look at everything, one batch in memory at a time."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.errors import InputError, UsageError
from onnxkit.progress import Progress
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibration.calibrators import CALIBRATORS
from onnxkit.quantize.calibration.collect import Collected, collect
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.expose import exposed, open_exposed
from onnxkit.quantize.calibration.ranges import calibrate
from onnxkit.quantize.calibration.runs import Graph, Run, runs
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.schemes import SCHEMES
from onnxkit.quantize.select import select
from tests.heard import Heard
from tests.quantize.graphs import ONE, mlp, random

INNER = ("x", "r")


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_zero_is_exact_and_the_range_is_covered(one, other):
    found = Range(low=min(one, other), high=max(one, other))
    scale, zero = found.parameters()
    low, high = (0 - int(zero)) * float(scale), (255 - int(zero)) * float(scale)
    if not found.empty and scale != 1.0:
        assert low <= min(found.low, 0) + scale
        assert high >= max(found.high, 0) - scale


@pytest.fixture
def graph(tmp_path) -> Graph:
    return Graph(component="model", model=ir.from_proto(mlp()), path=tmp_path / "model.onnx")


@pytest.fixture
def run_over(graph, tmp_path):
    """Returns what runs raw feeds through the graph of `mlp`."""

    def made(feeds, values=INNER):
        data = dataclasses.replace(DATA, samples=tuple(feeds), total=len(feeds), model=None)
        return runs(graph, values, data, scratch=tmp_path / "scratch", runtime=ONE, progress=Progress())

    return made


DATA = DataSet(source="f", samples=(), total=0, task=None, model=None)


def test_ragged_batches_give_the_ranges_of_the_float_model(run_over):
    feeds = [{"x": random(size, length, 32, seed=length)} for size, length in ((1, 3), (2, 9), (4, 1))]
    collected = collect(run_over(feeds), INNER, CALIBRATORS["minmax"](), total=3)
    weights = {tensor.name: ir.from_proto(tensor).numpy() for tensor in mlp().graph.initializer}
    inner = [np.maximum(f["x"] @ weights["up.weight"] + weights["up.bias"], 0) for f in feeds]
    assert collected.ranges["x"].high == pytest.approx(max(f["x"].max() for f in feeds))
    assert collected.ranges["r"].high == pytest.approx(max(float(a.max()) for a in inner), rel=1e-5)
    assert (collected.samples, collected.distinct) == (3, 3)


def test_the_graph_and_the_folder_stay_as_they_were(graph, run_over, tmp_path):
    before = ir.to_proto(graph.model).SerializeToString()
    assert [set(run.values) for run in run_over([{"x": random(1, 2, 32)}])] == [set(INNER)]
    assert ir.to_proto(graph.model).SerializeToString() == before
    assert not (tmp_path / "scratch").exists()


def test_only_what_is_asked_for_is_computed():
    made = exposed(ir.from_proto(mlp()), {"r"})
    assert [value.name for value in made.graph.outputs] == ["r"]
    assert {node.name for node in made.graph} == {"layer.up", "layer.up/bias", "layer.act"}


def test_values_that_are_inputs_need_no_run(run_over):
    (run,) = run_over([{"x": random(1, 2, 32)}], ("x",))
    assert run.values["x"].shape == (1, 2, 32)


def test_one_run_is_alive_at_a_time(run_over):
    seen: list[weakref.ref] = []
    feeds = [{"x": random(1, 4, 32, seed=number)} for number in range(6)]
    for run in run_over(feeds):
        array = run.values["r"]
        assert sum(ref() is not None for ref in seen) <= 1
        seen.append(weakref.ref(array))
        del run, array


def test_padding_does_not_count():
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    feeds, values = {"attention_mask": mask}, {"v": np.arange(12.0).reshape(2, 3, 2), "g": np.ones((4, 2))}
    run = Run(sample=1, where="a", feeds=feeds, values=values)
    np.testing.assert_array_equal(run.tokens("v"), [[0, 1], [2, 3], [6, 7]])
    assert run.tokens("g").shape == (4, 2)


def test_no_samples_is_an_error(run_over):
    with pytest.raises(InputError, match="calibration set is empty"):
        collect(run_over([]), INNER, CALIBRATORS["minmax"]())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_with_nan_is_named(run_over, bad):
    feeds = [{"x": random(1, 2, 32)}, {"x": np.full((1, 2, 32), bad, np.float32)}]
    with pytest.raises(InputError, match="sample 2: this calibration sample makes NaN"):
        collect(run_over(feeds), INNER, CALIBRATORS["minmax"]())


def test_an_empty_sample_is_named(run_over):
    with pytest.raises(InputError, match="sample 1: this calibration sample is empty"):
        collect(run_over([{"x": random(1, 0, 32)}]), INNER, CALIBRATORS["minmax"]())


def test_samples_that_are_the_same_are_counted_once(run_over):
    same = {"x": random(1, 2, 32)}
    collected = collect(run_over([same] * 4), INNER, CALIBRATORS["minmax"](), total=4)
    assert (collected.distinct, collected.widening, collected.enough) == (1, 0.0, None)


def test_the_change_is_that_of_the_last_half(run_over):
    feeds = [{"x": np.full((1, 2, 32), size, np.float32)} for size in (-1, 1, 1, 3)]
    collected = collect(run_over(feeds, ("x",)), ("x",), CALIBRATORS["minmax"](), total=4)
    assert collected.widening == pytest.approx(1.0)  # from [-1, 1] to [-1, 3]
    assert collected.enough == 4 << 5


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
def test_too_few_samples_are_named_with_a_number(graph, tmp_path, name):
    def warned(count: int, **change) -> str:
        heard = Heard()
        feeds = tuple({"x": random(1, 3, 32, seed=n, scale=1 + n)} for n in range(count))
        data = dataclasses.replace(DATA, **{"samples": feeds, "total": count, **change})
        targets = select(graph.model, SCHEMES["int8-static"], QuantizeOptions(include=(".",))).targets
        ranges, facts = calibrate(
            graph, targets, data, calibrator=name, scratch=tmp_path / "s", runtime=ONE, progress=heard
        )
        assert facts.method == name
        assert set(ranges) == set(INNER)
        return " ".join(heard.warnings)

    assert warned(1) == "1 calibration sample is too few; about 32 would do"
    assert "4 calibration samples are too few (the last half changed the ranges by" in warned(4)
    same = ({"x": random(1, 3, 32)},) * 4
    assert "all 4 calibration samples are the same" in warned(4, samples=same)


def test_an_unknown_calibrator_is_a_usage_error(graph, tmp_path):
    with pytest.raises(UsageError, match="unknown calibrator 'max'"):
        calibrate(
            graph, (), DATA, calibrator="max", scratch=tmp_path, runtime=ONE, progress=Progress()
        )  # fmt: skip


def test_estimates_need_twice_the_doublings():
    found = Collected(ranges={}, samples=8, distinct=8, widening=0.12, doublings_per_halving=2)
    assert found.enough == 8 << 3


@pytest.mark.parametrize(
    ("samples", "widening", "enough"),
    [(1, None, 32), (8, 0.02, None), (8, 0.08, 16), (8, 0.12, 32), (16, 0.3, 128)],
)
def test_how_many_samples_would_do(samples, widening, enough):
    assert Collected(ranges={}, samples=samples, distinct=samples, widening=widening).enough == enough


@pytest.mark.parametrize("inside", [2_000_000_000, 0])
def test_external_weights_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: int
):
    monkeypatch.setattr("onnxkit.quantize.calibration.expose._MOST_INSIDE", inside)
    model = ir.from_proto(mlp())
    source = tmp_path / "source"
    source.mkdir()
    ir.save(model, source / "model.onnx", external_data="weights.bin", size_threshold_bytes=1024)
    loaded = ir.load(source / "model.onnx")
    session = open_exposed(loaded, ("r",), source / "model.onnx", tmp_path / "scratch", ONE)
    assert (source / "weights.bin").stat().st_nlink == 1  # a model with linked data is refused as unsafe
    assert (tmp_path / "scratch").exists() == (inside == 0)
    assert session.run({"x": random(1, 2, 32)})["r"].shape == (1, 2, 64)
