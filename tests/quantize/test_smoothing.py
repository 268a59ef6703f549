"""SmoothQuant's factors and the search for alpha."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.quantize.formats import IntegerFormat, LogFormat
from onnxkit.quantize.input_statistics import InputStatistics
from onnxkit.quantize.smoothing.folding import linear_targets
from onnxkit.quantize.smoothing.smooth import Smoothing, repeat, smooth, smoothing_factors
from tests.quantize.graphs import mlp, random, session

Array = np.ndarray[Any, Any]
FORMAT = IntegerFormat(activations="dynamic", grid="full")
WIDTH = 32


def statistics(x: Array) -> InputStatistics:
    return InputStatistics(
        count=len(x), absmax=np.abs(x).max(axis=0), mean=x.mean(axis=0),
        mean_square=np.square(x).mean(axis=0), hessian=x.T @ x / len(x), sample=x,
    )  # fmt: skip


def inputs(outlier: float, tokens: int = 200) -> Array:
    """Normal values; the channels 3 and 17 are `outlier` times as large."""
    x = random(tokens, WIDTH, seed=5)
    x[:, [3, 17]] *= outlier
    return x


@given(alpha=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_factors_are_the_papers_up_to_a_constant(alpha: float, seed: int) -> None:
    x, w = np.abs(random(16, seed=seed)) + 0.01, np.abs(random(16, seed=seed + 1)) + 0.01
    made = smoothing_factors(x, w, alpha, floor=0.0).astype(np.float64)
    right = x**alpha / w ** (1 - alpha)
    np.testing.assert_allclose(made / made[0], right / right[0], rtol=1e-4)
    assert np.log(made).mean() == pytest.approx(0, abs=1e-5)


def test_quiet_channels_count_as_part_of_the_mean() -> None:
    x = np.array([1.0, 1.0, 1.0, 1e-9], np.float32)
    made = smoothing_factors(x, np.ones(4, np.float32), 1.0, floor=0.5)
    assert made[3] / made[0] > 1e-2


@pytest.mark.parametrize("alpha", ["auto", 0.7])
def test_smoothing_keeps_the_floats_and_mends_the_integers(alpha: Any) -> None:
    model = mlp(width=WIDTH)
    graph = ir.from_proto(copy.deepcopy(model))
    targets = linear_targets(graph)
    x = inputs(100.0)
    plan = {target.name: FORMAT for target in targets}
    done = smooth(graph, targets, {"x": statistics(x)}, plan, alpha=alpha)
    assert set(done) == {"layer.up"} and done["layer.up"].alpha > 0
    before, after = (session(made).run({"x": x[None]})["y"] for made in (model, ir.to_proto(graph)))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)
    assert error(x, graph, done["layer.up"].factors) < 0.2 * error(x, ir.from_proto(model), np.ones(WIDTH))


def error(x: Array, graph: ir.Model, factors: Array) -> float:
    """Of up-projection's output when its input is rounded to 255 steps of one range."""
    weight = graph.graph.initializers["up.weight"].const_value.numpy()  # type: ignore[union-attr]
    divided = x / factors
    step = (divided.max() - divided.min()) / 255
    return float(np.square((np.rint(divided / step) * step - divided) @ weight).sum())


def test_auto_leaves_an_even_input_nearly_alone_and_rows_alone() -> None:
    """One scale a row and even channels: nothing to win, so nothing much is done."""
    graph = ir.from_proto(mlp(width=WIDTH))
    targets = linear_targets(graph)
    plan = {target.name: IntegerFormat(activations="rows") for target in targets}
    done = smooth(graph, targets, {"x": statistics(inputs(1.0))}, plan)
    assert np.abs(np.log(done["layer.up"].factors)).max() < 1.0


@pytest.mark.parametrize(("outlier", "written"), [(1.0, 0), (100.0, 1)])
def test_a_mul_of_its_own_must_pay(outlier: float, written: int) -> None:
    """Nothing before the graph's input takes the division; a slight gain is not worth a pass over it."""
    graph = ir.from_proto(mlp(width=WIDTH))
    targets = linear_targets(graph)
    muls = [node.op_type for node in graph.graph].count("Mul")
    done = smooth(graph, targets, {"x": statistics(inputs(outlier))}, {t.name: FORMAT for t in targets})
    assert [node.op_type for node in graph.graph].count("Mul") == muls + written
    assert (done["layer.up"].factors != 1.0).any() == bool(written)


def test_a_twin_gets_the_same() -> None:
    model = mlp(width=WIDTH)
    graphs = [ir.from_proto(copy.deepcopy(model)) for _ in range(2)]
    x = inputs(30.0)
    targets = linear_targets(graphs[0])
    found = {"x": statistics(x), "r": statistics(np.abs(random(50, 64)))}
    done = smooth(graphs[0], targets, found, {target.name: FORMAT for target in targets})
    repeat(graphs[1], linear_targets(graphs[1]), done)
    assert set(done) == {"layer.up", "layer.down"}
    one, two = (ir.to_proto(graph).SerializeToString() for graph in graphs)
    assert one == two


def test_other_formats_and_values_without_statistics_stay() -> None:
    graph = ir.from_proto(mlp(width=WIDTH))
    targets = linear_targets(graph)
    plan = {"layer.up": LogFormat(bits=8), "layer.down": FORMAT}
    assert smooth(graph, targets, {"x": statistics(inputs(2.0))}, plan) == {}


@pytest.mark.parametrize("sample", [None, np.ones((1, 32), np.float32)])
def test_auto_has_nothing_to_search_on_without_two_tokens(sample: np.ndarray | None) -> None:
    graph = ir.from_proto(mlp(width=WIDTH))
    targets = linear_targets(graph)
    ones = np.ones(32, np.float32)
    bare = InputStatistics(count=1, absmax=ones, mean=ones, mean_square=ones, sample=sample)
    done = smooth(graph, targets, {"x": bare}, {target.name: FORMAT for target in targets})
    assert done
    assert all(each.alpha == 0.0 and (each.factors == 1.0).all() for each in done.values())


def test_statistics_of_the_divided_input() -> None:
    x, factors = inputs(4.0), (np.abs(random(WIDTH, seed=8)) + 0.1)
    made, right = Smoothing(alpha=0.5, factors=factors).of(statistics(x)), statistics(x / factors)
    for name in ("absmax", "mean", "mean_square", "hessian"):
        np.testing.assert_allclose(getattr(made, name), getattr(right, name), rtol=1e-3, atol=1e-5)
