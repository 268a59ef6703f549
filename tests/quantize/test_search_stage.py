"""The stage with limits, and the analysis: from a directory to what is published beside it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxkit.artifact import ModelDir
from onnxkit.errors import GateFailed, InputError, UsageError
from onnxkit.quantize import QuantizeOptions, analyze_model, quantize_model
from onnxkit.quantize import stage as quantize_stage
from onnxkit.quantize.search.bench import Bench
from tests.generating_models import language_model
from tests.heard import Heard
from tests.quantize.graphs import mlp_dir

TEXT = "the cat sat on the mat.\nwhat a day, said the dog.\n"


KILLED = """
import os, signal, sys
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.quantize.search.bench import Bench
real, calls = Bench.measure, []
def measure(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
Bench.measure = measure
options = QuantizeOptions(include=(".",), threads=1, scheme="int4-weight", min_cosine=1.0)
quantize_model(*sys.argv[1:], options)
"""


def options(**given) -> QuantizeOptions:
    return QuantizeOptions(**{"include": (".",), "threads": 1, **given})


def test_an_analysis_holds_no_model_and_may_be_replaced(tmp_path):
    source, out = mlp_dir(tmp_path / "in"), tmp_path / "out"
    report = analyze_model(source, out, options(scheme="int4-weight"))
    assert {path.name for path in out.iterdir()} == {
        "analysis.json", "sensitivity.svg", "exclude.txt", "onnxkit.json",
    }  # fmt: skip
    assert {layer.name for layer in report.layers} == {"layer.up", "layer.down"}
    assert report.layers[0].noise >= report.layers[1].noise > 0.0 and report.whole.noise > 0.0
    assert json.loads((out / "analysis.json").read_text())["result"]["scheme"] == "int4-weight"
    with pytest.raises(InputError, match="holds no model: it is the output of 'quantize --analyze'"):
        ModelDir.open(out)
    analyze_model(source, out, options(scheme="int4-weight", overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_what_the_exclusion_file_names_stays_float(tmp_path):
    source = mlp_dir(tmp_path / "in")
    found = analyze_model(source, tmp_path / "layers", options(scheme="int4-weight"))
    worst = found.layers[0].name
    kept = quantize_model(
        source, tmp_path / "out",
        options(scheme="int4-weight", exclude_from=tmp_path / "layers/exclude.txt", measure=False),
    )  # fmt: skip
    assert [layer.proposed for layer in found.layers] == [True, False]
    assert [layer.name for layer in kept.kept] == [worst]


def test_a_limit_that_cannot_hold_publishes_nothing_and_reports_the_best(tmp_path):
    source = mlp_dir(tmp_path / "in")
    with pytest.raises(GateFailed) as caught:
        quantize_model(source, tmp_path / "out", options(scheme="int4-weight", min_cosine=1.0))
    report = caught.value.report
    assert report.attempts and all(attempt.broken for attempt in report.attempts)
    assert len(report.quantized) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_language_model_keeps_a_divergence(tmp_path):
    source = language_model(tmp_path / "in")
    (tmp_path / "eval.txt").write_text(TEXT)
    given = {"scheme": "int8-dynamic", "eval": tmp_path / "eval.txt"}
    free = quantize_model(source, tmp_path / "free", options(**given))
    limit = free.measurement.divergence.kl_mean / 2
    report = quantize_model(source, tmp_path / "out", options(**given, max_kl=limit))
    assert report.measurement.divergence.kl_mean <= limit
    assert report.attempts[0].broken and not all(attempt.broken for attempt in report.attempts)
    assert len(report.quantized) < len(free.quantized)
    assert report.measurement.metric.name == "perplexity"


def test_a_killed_search_goes_on(tmp_path):
    source, out = mlp_dir(tmp_path / "in"), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, source, out], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(_journals(tmp_path)) == 1
    heard = Heard()
    with pytest.raises(GateFailed):
        quantize_model(source, out, options(scheme="int4-weight", min_cosine=1.0), progress=heard)
    assert "going on where a search stopped; variants measured before: 2" in heard.notes
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # nor what the killed run had staged


@pytest.mark.parametrize("stage", [quantize_model, analyze_model])
def test_a_search_that_is_over_is_kept_until_its_output_stands(tmp_path, monkeypatch, stage):
    source, out, calls = mlp_dir(tmp_path / "in"), tmp_path / "out", []
    measure = Bench.measure

    def counted(*given):
        calls.append(given)
        return measure(*given)

    def interrupted(*given, **more):
        raise KeyboardInterrupt

    goal = {"bits_per_weight": 7.0} if stage is quantize_model else {}
    wanted = options(scheme="mixed" if goal else "int4-weight", **goal)
    monkeypatch.setattr(Bench, "measure", counted)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(quantize_stage, "seal", interrupted)
        stage(source, out, wanted)
    assert calls and len(_journals(tmp_path)) == 1
    measured = len(calls)
    stage(source, out, wanted)
    assert len(calls) == measured
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_output_that_appears_meanwhile_costs_no_search(tmp_path, monkeypatch):
    source, out = mlp_dir(tmp_path / "in"), tmp_path / "out"
    seal = quantize_stage.seal

    def late(*given, **more):
        out.mkdir()
        (out / "note.txt").write_text("mine")
        seal(*given, **more)

    monkeypatch.setattr(quantize_stage, "seal", late)
    with pytest.raises(UsageError, match="exists"):
        quantize_model(source, out, options(scheme="mixed", bits_per_weight=7.0))
    assert len(_journals(tmp_path)) == 1 and (out / "note.txt").read_text() == "mine"


def _journals(folder: Path) -> list[Path]:
    return list(folder.glob(".out.onnxkit-search-*.jsonl"))
