"""Ranges from samples: the same as a naive look at everything, one batch in memory at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxkit.errors import InputError
from onnxkit.quantize.activations import Range
from onnxkit.quantize.calibrators import CALIBRATORS
from onnxkit.quantize.collect import Collected, collect
from onnxkit.quantize.data import DataSet, reservoir, single_rows, split
from onnxkit.quantize.expose import expose, open_exposed
from onnxkit.runtime import TensorSpec
from tests.quantize.graphs import ONE, mlp, random

FLOATS = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-1e4, 1e4, width=32)
)
INNER = ("x", "r")


@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_minmax_is_that_of_everything_at_once(batches):
    calibrator = CALIBRATORS["minmax"]()
    for batch in batches:
        calibrator.update("v", batch)
    whole = np.concatenate([batch.ravel() for batch in batches])
    assert calibrator.ranges() == {"v": Range(low=float(whole.min()), high=float(whole.max()))}


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_zero_is_exact_and_the_range_is_covered(one, other):
    found = Range(low=min(one, other), high=max(one, other))
    scale, zero = found.parameters()
    low, high = (0 - int(zero)) * float(scale), (255 - int(zero)) * float(scale)
    if not found.empty and scale != 1.0:
        assert low <= min(found.low, 0) + scale
        assert high >= max(found.high, 0) - scale


@pytest.fixture
def exposed(tmp_path):
    model = ir.from_proto(mlp())
    inner = [value for node in model.graph for value in node.outputs if value.name in INNER]
    assert expose(model, inner) == ["r"]
    return open_exposed(model, tmp_path / "model.onnx", tmp_path / "scratch", ONE)


def test_ragged_batches_give_the_ranges_of_the_float_model(exposed):
    feeds = [{"x": random(size, length, 32, seed=length)} for size, length in ((1, 3), (2, 9), (4, 1))]
    collected = collect(exposed, feeds, INNER, CALIBRATORS["minmax"]())
    weights = {tensor.name: ir.from_proto(tensor).numpy() for tensor in mlp().graph.initializer}
    inner = [np.maximum(f["x"] @ weights["up.weight"] + weights["up.bias"], 0) for f in feeds]
    assert collected.ranges["x"].high == pytest.approx(max(f["x"].max() for f in feeds))
    assert collected.ranges["r"].high == pytest.approx(max(float(a.max()) for a in inner), rel=1e-5)
    assert (collected.samples, collected.distinct) == (3, 3)


def test_one_batch_is_alive_at_a_time(exposed):
    seen: list[weakref.ref] = []

    def stream():
        for number in range(6):
            array = random(1, 4, 32, seed=number)
            alive = [ref for ref in seen if ref() is not None]
            assert len(alive) <= 1
            seen.append(weakref.ref(array))
            yield {"x": array}
            del array

    collect(exposed, stream(), INNER, CALIBRATORS["minmax"]())


def test_no_samples_is_an_error(exposed):
    with pytest.raises(InputError, match="calibration set is empty"):
        collect(exposed, [], INNER, CALIBRATORS["minmax"]())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_with_nan_is_named(exposed, bad):
    feeds = [{"x": random(1, 2, 32)}, {"x": np.full((1, 2, 32), bad, np.float32)}]
    with pytest.raises(InputError, match="sample 2 makes NaN"):
        collect(exposed, feeds, INNER, CALIBRATORS["minmax"]())


def test_an_empty_sample_is_named(exposed):
    with pytest.raises(InputError, match="sample 1 is empty"):
        collect(exposed, [{"x": random(1, 0, 32)}], INNER, CALIBRATORS["minmax"]())


def test_samples_that_are_the_same_are_counted_once(exposed):
    same = {"x": random(1, 2, 32)}
    collected = collect(exposed, [same] * 4, INNER, CALIBRATORS["minmax"]())
    assert (collected.distinct, collected.widening, collected.enough) == (1, 0.0, None)


@pytest.mark.parametrize(
    ("samples", "widening", "enough"),
    [(1, None, 32), (8, 0.02, None), (8, 0.08, 16), (8, 0.12, 32), (16, 0.3, 128)],
)
def test_how_many_samples_would_do(samples, widening, enough):
    assert Collected(ranges={}, samples=samples, distinct=samples, widening=widening).enough == enough


@given(st.integers(0, 300), st.integers(1, 200), st.booleans(), st.integers(0, 5))
def test_calibration_and_held_out_never_meet(count, samples, hold_out, seed):
    data = DataSet(source="f", samples=tuple({"text": str(i)} for i in range(count)), total=count, task=None)
    parts = split(data, samples=samples, hold_out=hold_out, seed=seed)
    one = [sample["text"] for sample in parts.calibration.samples]
    other = [sample["text"] for sample in parts.held_out.samples] if parts.held_out else []
    assert not set(one) & set(other)
    assert len(one) == min(samples, count - len(other))
    assert bool(other) == (hold_out and count >= 5)
    assert len(other) <= 64
    assert parts == split(data, samples=samples, hold_out=hold_out, seed=seed)


@given(st.integers(0, 60), st.integers(1, 40), st.integers(0, 5))
def test_the_reservoir_keeps_order_and_count(count, most, seed):
    kept, total = reservoir(({"n": n} for n in range(count)), most, seed)
    numbers = [sample["n"] for sample in kept]
    assert total == count
    assert len(numbers) == min(most, count)
    assert numbers == sorted(set(numbers))


SPECS = (
    TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="mask", dtype="int64", shape=(1, "length")),
    TensorSpec(name="scale", dtype="float32", shape=()),
)
ROWS = {"x": random(3, 4), "mask": np.ones((3, 2), np.int64), "scale": np.float32(2.0).reshape(())}


def test_tensors_are_divided_along_the_batch_axis():
    rows = list(single_rows(ROWS, SPECS, "c.npz"))
    assert [{name: array.shape for name, array in row.items()} for row in rows] == [
        {"x": (1, 4), "mask": (1, 2), "scale": ()}
    ] * 3
    np.testing.assert_array_equal(np.concatenate([row["x"] for row in rows]), ROWS["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": random(3, 4).astype(np.float64)}, "x is float64 of rank 2; the model takes float32"),
        ({"x": random(3, 4, 1)}, "of rank 3"),
        ({"x": random(2, 4)}, "batch sizes differ"),
        ({"y": random(3, 4)}, "the model's inputs are"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(single_rows({**ROWS, **change}, SPECS, "c.npz"))


def test_external_weights_are_linked_not_loaded(tmp_path: Path):
    model = ir.from_proto(mlp())
    source = tmp_path / "source"
    source.mkdir()
    ir.save(model, source / "model.onnx", external_data="weights.bin", size_threshold_bytes=1024)
    loaded = ir.load(source / "model.onnx")
    session = open_exposed(loaded, source / "model.onnx", tmp_path / "scratch", ONE)
    assert (tmp_path / "scratch" / "weights.bin").samefile(source / "weights.bin")
    assert session.run({"x": random(1, 2, 32)})["y"].shape == (1, 2, 32)
