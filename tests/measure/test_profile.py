"""Profiling in child processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxkit.errors import EnvironmentProblem, InputError, ResourceError, UsageError
from onnxkit.measure import ProfileOptions, profile_model
from onnxkit.measure.children import Child
from onnxkit.measure.operators import operator_table, read_trace
from onnxkit.measure.profile import _budgets
from onnxkit.runtime.cuda import examine_cuda
from tests.heard import Heard

QUICK: dict[str, Any] = {"runs": 6, "warmup": 1}


def test_a_grid_side_by_side(text_dir: Path, tmp_path: Path) -> None:
    notes = Heard()
    options = ProfileOptions(batch=(2, 1), sequence=(8,), threads=(1,), padding="right", **QUICK)
    report = profile_model([text_dir, text_dir / "model.onnx"], options, progress=notes)
    first, second = report.models
    assert [(row.batch, row.sequence) for row in first.measurements] == [(1, 8), (2, 8)]
    single, pair = first.measurements
    assert single.tokens == 8 and 9 <= (pair.tokens or 0) < 16
    assert single.latency.runs == 6
    assert single.samples_per_s == pytest.approx(1e3 / single.latency.mean_ms)
    assert pair.tokens_per_s == pytest.approx((pair.tokens or 0) * 1e3 / pair.latency.mean_ms)
    assert first.session.threads == 1 and first.session.provider == "CPUExecutionProvider"
    assert first.session.nodes["CPUExecutionProvider"] > 0
    assert 0 < first.start_memory_bytes < single.peak_memory_bytes <= pair.peak_memory_bytes
    assert single.ratio is None
    compared = second.measurements[0].ratio
    assert compared is not None and compared.paired > 0 and compared.baseline.startswith(str(text_dir))
    assert sum(row.share for row in single.operators) == pytest.approx(1.0)
    assert {row.op for row in single.operators} >= {"Cast", "Unsqueeze"}
    assert any("1 thread (requested)" in line for line in notes.notes)
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_trace_is_a_chrome_trace(text_dir: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    report = profile_model([text_dir], ProfileOptions(sequence=(4,), trace=trace, **QUICK))
    assert report.models[0].trace == str(trace)
    events = read_trace(trace)
    assert all({"name", "ph", "ts", "pid", "tid"} <= event.keys() for event in events if event["ph"] == "X")
    with pytest.raises(UsageError, match="one model"):
        profile_model([text_dir, text_dir], ProfileOptions(trace=trace, **QUICK))


def test_image_models_have_no_sequence(image_dir: Path) -> None:
    with pytest.raises(UsageError, match="--sequence does not apply"):
        profile_model([image_dir], ProfileOptions(sequence=(8,), **QUICK))
    with pytest.raises(UsageError, match="--padding does not apply"):
        profile_model([image_dir], ProfileOptions(padding="left", **QUICK))
    report = profile_model([image_dir], ProfileOptions(batch=(3,), operators=False, **QUICK))
    (row,) = report.models[0].measurements
    assert (row.batch, row.sequence, row.tokens, row.tokens_per_s, row.operators) == (3, None, None, None, ())
    assert "no sequence length applies" in report.notes[0]


def test_what_cannot_be_measured_is_said_first(text_dir: Path) -> None:
    with pytest.raises(InputError, match="64 positions"):
        profile_model([text_dir], ProfileOptions(sequence=(65,)))
    with pytest.raises(UsageError, match="at least 1"):
        profile_model([text_dir], ProfileOptions(batch=(0,)))
    with pytest.raises(UsageError, match="not both"):
        profile_model([text_dir], ProfileOptions(runs=1, seconds=1.0))
    with pytest.raises(UsageError, match="unknown execution provider"):
        profile_model([text_dir], ProfileOptions(eps=("gpu0",)))
    with pytest.raises(UsageError, match="has no options"):
        profile_model([text_dir], ProfileOptions(ep_options={"device_id": "0"}))
    with pytest.raises(UsageError, match="no model"):
        profile_model([])


@pytest.mark.skipif(not examine_cuda().problem, reason="CUDA works here")
def test_a_childs_error_is_the_parents(text_dir: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="CUDAExecutionProvider cannot be used"):
        profile_model([text_dir], ProfileOptions(eps=("cpu", "cuda"), **QUICK))


def test_a_killed_child_is_a_resource_error() -> None:
    with Child("big model") as child:
        child._process.kill()
        with pytest.raises(ResourceError, match=r"big model: .*out of memory"):
            child.ask("usage")


@pytest.mark.parametrize("runs", [1, 4, 5, 13])
def test_rounds_add_up(runs: int) -> None:
    for children in (1, 3):
        shares = [budget["runs"] for budget in _budgets(ProfileOptions(runs=runs), children)]
        assert sum(shares) == runs and min(shares) >= 1
    budgets = list(_budgets(ProfileOptions(seconds=2.0), 2))
    assert sum(budget["seconds"] for budget in budgets) == pytest.approx(2.0)


def test_operator_table_adds_up_what_is_counted() -> None:
    def run(ts: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 90}

    def node(ts: int, op: str, dur: int, index: str, suffix: str = "_kernel_time") -> dict[str, Any]:
        details = {"op_name": op, "provider": "CPU", "node_index": index}
        return {"cat": "Node", "name": f"n{index}{suffix}", "ts": ts, "dur": dur, "args": details}

    events = [run(0), node(1, "Add", 80, "0")]
    for start in (100, 200):
        events += [run(start), node(start + 1, "Add", 10, "0"), node(start + 20, "MatMul", 30, "1")]
        events += [node(start + 60, "MatMul", 10, "2"), node(start + 70, "Add", 99, "0", "_fence_before")]
    matmul, add = operator_table(events, first=1)
    assert (matmul.op, matmul.nodes, matmul.total_ms, matmul.share) == ("MatMul", 2, 0.04, 0.8)
    assert (add.op, add.nodes, add.total_ms) == ("Add", 1, 0.01)
    assert operator_table(events, first=9) == ()


def test_a_branchs_nodes_do_not_count_twice() -> None:
    def node(ts: int, op: str, dur: int, name: str, index: str) -> dict[str, Any]:
        details = {"op_name": op, "provider": "CPU", "node_index": index}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": details}

    events = [{"cat": "Session", "name": "model_run", "ts": 0, "dur": 100}]
    events += [
        node(12, "Attention", 30, "a", "0"),
        node(10, "If", 40, "outer", "3"),
    ]  # the inner one ends first
    events += [
        node(62, "Attention", 30, "b", "0"),
        node(60, "If", 35, "other", "4"),
        node(96, "Add", 4, "c", "5"),
    ]
    found = {row.op: (row.nodes, round(row.total_ms * 1e3)) for row in operator_table(events)}
    assert found == {"Attention": (2, 60), "If": (2, 15), "Add": (1, 4)}


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    for text in ("", "{}", "[1, 2"):
        file.write_text(text)
        with pytest.raises(InputError, match="no trace"):
            read_trace(file)
