"""Statistics of time against independent ones; who takes turns when."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.errors import UsageError
from onnxkit.machine import Cores
from onnxkit.measure import latency
from onnxkit.measure.latency import (
    cautions,
    compare_rounds,
    interleaved,
    interleaved_calls,
    outlier_scores,
    sample,
    summarize,
    time_session,
)

times = st.lists(st.floats(0.001, 1e4), min_size=2, max_size=60)


@given(times)
def test_summary_against_the_standard_library(values: list[float]) -> None:
    got = summarize(values)
    assert got.runs == len(values)
    assert got.mean_ms == pytest.approx(statistics.fmean(values))
    assert got.p50_ms == pytest.approx(statistics.median(values))
    assert got.stddev_ms == pytest.approx(statistics.stdev(values), abs=1e-6)
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    assert got.p90_ms == pytest.approx(quantiles[89])
    assert got.p99_ms == pytest.approx(quantiles[98])
    assert got.min_ms <= got.p50_ms <= got.p90_ms <= got.p99_ms <= got.max_ms


def test_one_run_has_no_spread() -> None:
    assert summarize([3.0]).stddev_ms == 0.0


@pytest.mark.parametrize(
    ("values", "outliers"),
    [([10, 11, 10, 12, 11, 10, 200], 1), ([10, 11, 10, 12, 11, 10, 13], 0), ([5, 5, 5, 5], 0)],
)
def test_outliers(values: list[float], outliers: int) -> None:
    assert summarize(values).outliers == outliers


def test_outlier_scores_are_hyperfines() -> None:
    """median 3, absolute deviations 2 1 0 1 97, their median 1."""
    np.testing.assert_allclose(outlier_scores(np.array([1.0, 2, 3, 4, 100])), [-2, -1, 0, 1, 97])


def test_ratio_and_its_error() -> None:
    base, twice = [10.0, 12.0, 8.0], [20.0, 24.0, 16.0]
    (got,) = compare_rounds({"a": [[t] for t in base], "b": [[t] for t in twice]}).ratios
    assert (got.name, got.baseline) == ("b", "a")
    assert got.of_means == got.of_medians == got.paired == pytest.approx(2.0)
    # Each mean has the relative standard error (2 / 10) / sqrt(3); two of them add in squares.
    assert got.error == pytest.approx(2.0 * (2 * (0.2**2 / 3)) ** 0.5)


def test_pairs_forgive_drift() -> None:
    """A machine that slows down by half leaves the ratio within each round alone."""
    base = [[10.0]] * 5 + [[20.0]] * 5
    ours = [[11.0]] * 5 + [[22.0]] * 5
    (got,) = compare_rounds({"a": base, "b": ours}).ratios
    assert got.paired == pytest.approx(1.1)
    assert got.paired_error == pytest.approx(0.0)


def test_calls_take_turns_and_turn_around() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    got = interleaved_calls(calls, runs=2, warmup=1)
    assert "".join(seen) == "abc" + "abc" + "cba"
    assert {summary.runs for summary in got.summaries.values()} == {2}


def test_runs_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(sample(lambda: None, runs=7)) == 7
    now = 0.0

    def call() -> None:  # a quarter of a second, on a clock that only it moves
        nonlocal now
        now += 0.25

    monkeypatch.setattr(latency.time, "perf_counter", lambda: now)
    assert sample(call, seconds=2.0) == [250.0] * 8
    assert sample(call, seconds=0.5) == [250.0] * latency.FEWEST_RUNS
    for wrong in ({"runs": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"runs": 1, "seconds": 1.0}):
        with pytest.raises(UsageError):
            sample(lambda: None, **wrong)  # type: ignore[arg-type]


def test_cautions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency.machine, "usable_cores", lambda: Cores(count=2, source="affinity"))
    calm = summarize([10.0] * 20)
    assert cautions(calm) == ()
    kinds = {each.kind: each for each in cautions(calm, other_cores=1.5, threads=4)}
    assert set(kinds) == {"load", "oversubscribed"}
    assert "1.5 cores" in kinds["load"].text
    assert [each.kind for each in cautions(summarize([1.0, 2.0, 3.0]))] == ["noise", "few_runs"]
    assert [each.kind for each in cautions(summarize([10.0, 10.1] * 9 + [11.7]))] == ["outliers"]


def test_sessions(masked_sum: Any) -> None:
    feeds = {"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 4), np.int64)}
    assert time_session(masked_sum(0.0), feeds, runs=5).runs == 5
    got = interleaved({"plain": masked_sum(0.0), "shifted": masked_sum(1.0)}, feeds, runs=5)
    assert list(got.summaries) == ["plain", "shifted"]
    assert got.ratios[0].paired > 0


def test_load_meter_sees_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100.0, 0.0), (103.0, 0.0)])
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(latency.machine, "cpu_seconds", lambda: next(readings))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(latency.time, "process_time", lambda: 1.0)
    assert latency.LoadMeter().other_cores(own_seconds=1.0) == pytest.approx(1.0)
