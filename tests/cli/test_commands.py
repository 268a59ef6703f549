"""From words to the options of a stage: every option arrives, none is ignored."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxkit.cli.app import _wanted, execute
from onnxkit.cli.console import Console
from onnxkit.machine import Cores


@dataclasses.dataclass
class Call:
    """What a stage was called with."""

    args: tuple[Any, ...] = ()
    progress: Any = None
    invocation: Any = None
    said: str = ""


def call(monkeypatch: pytest.MonkeyPatch, stage: str, words: list[str]) -> Call:
    """Run a command line up to its stage function, which is replaced."""
    import importlib

    package, function = stage.rsplit(".", 1)
    made = Call()

    def stop(*args: Any, progress: Any = None, invocation: Any = None) -> Any:
        made.args, made.progress, made.invocation = args, progress, invocation
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(package), function, stop)
    err = io.StringIO()
    code = execute(words, Console(out=io.StringIO(), err=err))
    made.said = err.getvalue()
    assert code == 130, made.said
    return made


def test_export(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    words = [
        "export",
        "-m",
        "model",
        "out",
        "--dtype",
        "fp16",
        "--no-verify",
        "--revision",
        "v1",
        "--opset",
        "20",
    ]
    made = call(monkeypatch, "onnxkit.export.export_model", words)
    model, out, options = made.args
    assert (model, out) == ("model", Path("out"))
    assert (options.dtype, options.verify, options.revision, options.opset) == ("fp16", False, "v1", 20)
    assert options.task == "auto"


def test_optimize(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["optimize", "in", "out", "-O3", "--ep", "cuda", "--disable-fusion", "a", "--disable-fusion", "b"]
    made = call(monkeypatch, "onnxkit.optimize.optimize_model", words)
    options = made.args[2]
    assert (options.level, options.ep, options.disable_fusions) == (3, "cuda", ("a", "b"))
    assert made.invocation.sources["level"] == "command line"


@pytest.mark.parametrize("level", range(5))
def test_every_spelling_of_a_level(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for spelling in ([f"-O{level}"], ["-O", str(level)], ["--level", str(level)]):
        made = call(monkeypatch, "onnxkit.optimize.optimize_model", ["optimize", "in", "out", *spelling])
        assert made.args[2].level == level


def test_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quantize", "in", "out", "--scheme", "int8-static", "--calibration", "c.csv", "--samples", "7"]
    words += ["--eval", "e.csv", "--column", "text=review", "--column", "label=stars", "--per-tensor"]
    words += ["--include", "a", "--exclude", "b", "--exclude", "c", "--op-types", "MatMul, Gemm"]
    words += ["--seed", "5", "--threads", "1"]
    words += ["--format", "qdq", "--calibrator", "mse", "--calibration-cache", "c.json", "--max-length", "9"]
    words += ["--smooth-quant", "0.5", "--bias-correction", "--algorithm", "awq", "--block-size", "64"]
    words += ["--asymmetric", "--accuracy-level", "1", "--embeddings", "int4", "--bits-per-weight", "4.8"]
    words += ["--exclude-from", "x.txt", "--max-drop", "1", "--min-cosine", "0.9", "--max-kl", "0.1"]
    words += ["--max-worst-slice", "2", "--target", "arm64", "--no-measure", "--task", "fill-mask"]
    words += ["--overwrite", "--genai-config"]
    made = call(monkeypatch, "onnxkit.quantize.quantize_model", words)
    assert dataclasses.asdict(made.args[2]) == {
        "scheme": "int8-static", "calibration": Path("c.csv"), "calibration_cache": Path("c.json"),
        "calibrator": "mse", "samples": 7, "max_length": 9, "format": "qdq", "per_channel": False,
        "smooth_quant": 0.5, "bias_correction": True, "algorithm": "awq", "block_size": 64,
        "symmetric": False, "accuracy_level": 1, "embeddings": "int4", "bits_per_weight": 4.8,
        "include": ("a",), "exclude": ("b", "c"), "exclude_from": Path("x.txt"),
        "op_types": ("MatMul", "Gemm"), "max_drop": 1.0, "min_cosine": 0.9, "max_kl": 0.1,
        "max_worst_slice": 2.0, "target": "arm64", "eval": Path("e.csv"), "measure": False,
        "genai_config": True, "columns": {"text": "review", "label": "stars"}, "task": "fill-mask",
        "overwrite": True, "seed": 5, "threads": 1,
    }  # fmt: skip


def test_quantize_without_options_takes_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxkit.quantize import QuantizeOptions

    made = call(monkeypatch, "onnxkit.quantize.quantize_model", ["quantize", "in", "out"])
    assert made.args[2] == QuantizeOptions()


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("off", "off"), ("0.7", 0.7), ("x", "x")])
def test_what_smooth_quant_takes(word: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quantize", "in", "out", "--smooth-quant", word, "--calibration", "random"]
    options = call(monkeypatch, "onnxkit.quantize.quantize_model", words).args[2]
    assert (options.smooth_quant, options.calibration) == (value, "random")


def test_quantize_analyze(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quantize", "in", "out", "--analyze", "--scheme", "int4-weight", "--eval", "e.csv"]
    made = call(monkeypatch, "onnxkit.quantize.analyze_model", words)
    assert (made.args[0], made.args[1], made.args[2].scheme) == (Path("in"), Path("out"), "int4-weight")


def test_the_lists_of_quantize_are_those_of_the_library() -> None:
    from onnxkit.cli import quantize_options as listed
    from onnxkit.quantize.calibration.calibrators import CALIBRATORS, DEFAULT_CALIBRATOR
    from onnxkit.quantize.codes.blocks import ALGORITHMS
    from onnxkit.quantize.hardware import TARGETS
    from onnxkit.quantize.options import _CHOICES
    from onnxkit.quantize.schemes import SCHEMES

    assert tuple(SCHEMES) == listed.SCHEMES
    assert tuple(CALIBRATORS) == listed.CALIBRATORS
    assert listed.DEFAULT_CALIBRATOR == DEFAULT_CALIBRATOR
    assert sorted(listed.ALGORITHMS) == sorted(ALGORITHMS)
    assert tuple(TARGETS) == listed.TARGETS
    assert (_CHOICES["format"], _CHOICES["embeddings"]) == (listed.FORMATS, listed.EMBEDDINGS)


def test_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "profile",
        "a",
        "b",
        "--batch",
        "1,8",
        "--sequence",
        "16,128",
        "--ep",
        "cpu,cuda",
        "--threads",
        "1,2",
    ]
    words += ["--ep-option", "device_id=1", "--runs", "9", "--padding", "left", "--no-operators"]
    made = call(monkeypatch, "onnxkit.measure.profile_model", words)
    models, options = made.args
    assert list(models) == [Path("a"), Path("b")]
    assert (options.batch, options.sequence, options.threads) == ((1, 8), (16, 128), (1, 2))
    assert (options.eps, options.ep_options) == (("cpu", "cuda"), {"device_id": "1"})
    assert (options.runs, options.seconds, options.padding, options.operators) == (9, None, "left", False)


def test_options_of_the_environment_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXKIT_LEVEL", "1")
    monkeypatch.setenv("ONNXKIT_DISABLE_FUSION", "a b")
    made = call(monkeypatch, "onnxkit.optimize.optimize_model", ["optimize", "in", "out"])
    assert (made.args[2].level, made.args[2].disable_fusions) == (1, ("a", "b"))
    assert made.invocation.sources["level"] == "environment"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "nosuch"),
        (["quantise"], "quantize"),
        (["optimize", "in"], "OUT"),
        (["optimize", "in", "out", "more"], "more"),
        (["optimize", "in", "out", "-O5"], "--level"),
        (["optimize", "in", "out", "-Ox"], "--level"),
        (["optimize", "in", "out", "--threads"], "--threads"),
        (["optimize", "in", "out", "--disable-fusoin", "a"], "--disable-fusion"),
        (["export", "model"], "OUT"),
        (["export", "-m", "model", "a", "b"], "twice"),
        (["export", "model", "out", "--dtype", "fp8"], "fp16"),
        (["quantize", "in", "out", "--samples", "0"], "--samples"),
        (["quantize", "in", "out", "--column", "text=t"], "--column"),
        (["quantize", "in", "out", "--no-measure", "--eval", "x"], "--eval"),
        (["profile", "a", "--runs", "1", "--seconds", "1"], "--seconds"),
        (["profile", "a", "--ep", ","], "--ep"),
        (["run", "a", "", "--ep-option", "x"], "--ep-option"),
        (["run", "", "text"], "DIR"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(words: list[str], said: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert execute(words, Console(out=out, err=err)) == 2
    assert out.getvalue() == ""
    assert said in err.getvalue()
    assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1


def test_a_variable_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXKIT_LEVEL", "high")
    err = io.StringIO()
    assert execute(["optimize", "in", "out"], Console(out=io.StringIO(), err=err)) == 2
    assert "ONNXKIT_LEVEL" in err.getvalue()


@pytest.mark.parametrize(
    ("value", "asked"), [("1", True), ("yes", True), ("0", False), ("", False), ("?", False)]
)
def test_the_environment_may_ask_for_json_before_anything_is_parsed(
    monkeypatch: pytest.MonkeyPatch, value: str, asked: bool
) -> None:
    monkeypatch.setenv("ONNXKIT_JSON", value)
    assert _wanted("json", ["run", "model"]) == asked
    assert _wanted("json", ["run", "model", "--json"])


def test_json_and_text_after_the_double_dash_are_no_options() -> None:
    out = io.StringIO()
    console = Console(out=out, err=io.StringIO())
    console.json = True  # as `app._prepare` guesses from the words
    assert execute(["run", "missing", "--", "--json"], console) == 3
    assert out.getvalue() == ""
    assert execute(["run", "missing", "text", "--json"], console) == 3
    assert json.loads(out.getvalue())["error"]["code"] == 3


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed_lead_nowhere(closed: str) -> None:
    for words, code in (("inspect /nowhere --json", 3), ("--version", 0)):
        line = f"'{sys.executable}' -m onnxkit {words} {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)
        assert (done.stdout == "") == (">&-" in closed.split())


@pytest.mark.parametrize(("threads", "warned"), [("2", False), ("3", True)])
def test_more_threads_than_cores_are_said(
    threads: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = Cores(count=2, source="cgroup quota")
    monkeypatch.setattr("onnxkit.cli.options.usable_cores", lambda: cores)
    words = ["optimize", "in", "out", "--threads", threads]
    made = call(monkeypatch, "onnxkit.optimize.optimize_model", words)
    assert ("may use 2 cores (cgroup quota)" in made.said) == warned
