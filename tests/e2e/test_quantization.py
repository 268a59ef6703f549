"""Every scheme on every kind of model through the installed command, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxkit.inputs import read_samples
from onnxkit.predictor import Predictor
from onnxkit.quantize import QuantizeOptions, quantize_model
from onnxkit.runtime import RuntimeOptions
from tests.e2e.harness import DIGITS, LANGID, SAMPLES, Artifact, fails, run, succeed

PYDOC, NUMBERS = SAMPLES / "pydoc-gpt2", SAMPLES / "numbers-t5"
INPUTS: Mapping[Path, str] = {
    LANGID: "Guten Morgen, wie geht es Ihnen?",
    DIGITS: "",  # an image of the evaluation set
    PYDOC: "The built-in function",
    NUMBERS: "three hundred and four",
}
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "int8-dynamic": ("CALIBRATION",),
    "int8-static": ("CALIBRATION",),
    "int8-static qdq": ("CALIBRATION", "--format", "qdq"),
    "int8-weight": (),
    "int4-weight": ("CALIBRATION", "--block-size", "16"),
    "fp16": (),
    "bf16": (),
    "log8": (),
    "log4": (),
    "mixed": ("CALIBRATION", "--bits-per-weight", "6.5"),
}
POINTS = {"int8-static": 0.5, "int8-dynamic": 0.5, "int8-weight": 0.5, "int4-weight": 2.0}
"""What a scheme may lose of the metric on the held-out set, in points; of a perplexity in per cent."""

Made = Callable[[Path, str], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return an exported sample model, optimized to a level ("-O2"), or as it was exported ("")."""
    known: dict[tuple[Path, str], Path] = {}
    folder = tmp_path_factory.mktemp("quantization")

    def make(checkpoint: Path, level: str) -> Path:
        if (checkpoint, level) not in known:
            out = folder / f"{checkpoint.name}{level}"
            if level:
                succeed("optimize", make(checkpoint, ""), out, level, "--no-measure")
            else:
                succeed("export", checkpoint, out)
            known[checkpoint, level] = out
        return known[checkpoint, level]

    return make


def quantized(source: Path, out: Path, checkpoint: Path, scheme: str, *more: str | Path) -> Any:
    """Quantize with a row of `SCHEMES`; return the report."""
    words: list[str | Path] = []
    for word in SCHEMES[scheme]:
        words += ["--calibration", checkpoint / "calibration.jsonl"] if word == "CALIBRATION" else [word]
    if words[:1] == ["--calibration"] and "--eval" not in more:
        words += ["--samples", "16"]
    return succeed("quantize", source, out, "--scheme", scheme.split()[0], *words, *more, "--json").document[
        "result"
    ]


def used(model: Path, checkpoint: Path) -> None:
    """Run and profile a model."""
    given = INPUTS[checkpoint] or next((checkpoint / "evaluation").iterdir())
    [record] = succeed("run", model, given, "--json").document["result"]
    assert record.get("label") or record["text"]
    [profile] = succeed("profile", model, "--runs", "2", "--no-operators", "--json").document["result"][
        "models"
    ]
    assert profile["measurements"] or profile["generation"]


def test_a_quantized_encoder_is_smaller_and_runs(optimized: Artifact, tmp_path: Path) -> None:
    report = quantized(optimized.path, tmp_path / "q", LANGID, "int8-static qdq", "--no-measure")
    assert report["quantized"] and report["size_ratio"] < 0.3
    used(tmp_path / "q", LANGID)


def test_a_quantized_vision_model_is_smaller_and_runs(digits: Artifact, tmp_path: Path) -> None:
    report = quantized(digits.path, tmp_path / "q", DIGITS, "log4", "--no-measure")
    assert report["quantized"] and report["size_ratio"] < 0.45
    used(tmp_path / "q", DIGITS)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("checkpoint", INPUTS, ids=lambda path: path.name)
def test_every_scheme_through_the_command(checkpoint: Path, scheme: str, made: Made, tmp_path: Path) -> None:
    report = quantized(made(checkpoint, "-O2"), tmp_path / "q", checkpoint, scheme, "--no-measure")
    assert report["size_ratio"] < 0.6
    if scheme != "bf16":  # no CPU kernel takes bfloat16
        used(tmp_path / "q", checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O3"])
@pytest.mark.parametrize("checkpoint", INPUTS, ids=lambda path: path.name)
def test_every_scheme_after_the_other_levels(
    checkpoint: Path, level: str, scheme: str, made: Made, tmp_path: Path
) -> None:
    options = options_of(scheme, checkpoint)
    report = quantize_model(made(checkpoint, level), tmp_path / "q", options)
    assert report.size_ratio < 0.6
    if scheme != "bf16":
        given = next(iter(read_samples(checkpoint / "evaluation.jsonl", columns={})))
        [record] = Predictor(tmp_path / "q", runtime=RuntimeOptions(threads=1))([given])
        assert record


def options_of(scheme: str, checkpoint: Path) -> QuantizeOptions:
    """A row of `SCHEMES` as options, in this process: starting the command takes longer than its work."""
    words = SCHEMES[scheme]
    named = {flag.lstrip("-").replace("-", "_"): value for flag, value in pairwise(words) if flag[:1] == "-"}
    return QuantizeOptions(
        scheme=scheme.split()[0], measure=False, threads=1, samples=16 if "CALIBRATION" in words else 128,
        calibration=checkpoint / "calibration.jsonl" if "CALIBRATION" in words else None,
        format=named.get("format"),
        block_size=int(named["block_size"]) if "block_size" in named else None,
        bits_per_weight=float(named["bits_per_weight"]) if "bits_per_weight" in named else None,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("scheme", POINTS)
@pytest.mark.parametrize("checkpoint", INPUTS, ids=lambda path: path.name)
def test_what_it_costs_on_the_held_out_set(checkpoint: Path, scheme: str, made: Made, tmp_path: Path) -> None:
    report = quantized(
        made(checkpoint, "-O2"), tmp_path / "q", checkpoint, scheme, "--eval", checkpoint / "evaluation.jsonl"
    )
    metric = report["measurement"]["metric"]
    worse = metric["before"] - metric["after"] if metric["higher_is_better"] else (
        metric["after"] / metric["before"] - 1
    )  # fmt: skip
    assert 100 * worse <= POINTS[scheme], metric


@pytest.mark.parametrize("scheme", ["int8-dynamic", "fp16"])
def test_after_O4_it_is_refused(scheme: str, langid: Artifact, tmp_path: Path, untouched: Path) -> None:
    succeed("optimize", langid.path, tmp_path / "half", "-O4", "--no-measure")
    fails(3, "quantize", tmp_path / "half", untouched / "new", "--scheme", scheme, says=["half"])


# --- limits, analysis --------------------------------------------------------------------------------


def test_layers_are_released_until_the_limit_holds(optimized: Artifact, tmp_path: Path) -> None:
    limits = ("--scheme", "int4-weight", "--min-cosine", "0.99998", "--eval", LANGID / "calibration.jsonl")
    done = succeed("quantize", optimized.path, tmp_path / "q", *limits, "--json")
    report = done.document["result"]
    assert report["attempts"][0]["broken"]
    assert min(each["cosine"] for each in report["measurement"]["agreement"]) >= 0.99998
    assert any(each["reason"].startswith("released") for each in report["kept"])
    assert "gate: everything quantized" in done.err


def test_a_limit_that_cannot_be_kept_ends_with_7_and_the_table(optimized: Artifact, untouched: Path) -> None:
    words = ("quantize", optimized.path, untouched / "new", "--scheme", "int4-weight", "--min-cosine", "1")
    words = (*words, "--eval", LANGID / "calibration.jsonl", "--op-types", "MatMul")
    done = fails(7, *words, says=["no variant keeps the limits", "the nearest"])
    assert "everything quantized" in done.out and "not written" in done.out
    document = json.loads(run(*words, "--json").out)
    assert (document["error"]["code"], document["error"]["kind"]) == (7, "gate")
    assert len(document["result"]["attempts"]) > 1


def test_an_analysis_and_its_exclusion_file(optimized: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "layers"
    done = succeed(
        "quantize", optimized.path, out, "--analyze", "--eval", LANGID / "calibration.jsonl", "--json"
    )
    analysis = done.document["result"]
    assert {path.name for path in out.iterdir()} >= {"analysis.json", "exclude.txt", "sensitivity.svg"}
    assert not list(out.glob("*.onnx*"))
    assert json.loads((out / "analysis.json").read_text())["result"] == analysis
    proposed = [each["name"] for each in analysis["layers"] if each["proposed"]]
    assert proposed
    kept = succeed(
        "quantize",
        optimized.path,
        tmp_path / "q",
        "--exclude-from",
        out / "exclude.txt",
        "--no-measure",
        "--json",
    ).document["result"]["kept"]
    assert set(proposed) <= {each["name"] for each in kept}
    table = succeed(
        "quantize", optimized.path, out, "--analyze", "--eval", LANGID / "calibration.jsonl", "--overwrite"
    ).out
    assert f"{proposed[0]} *" in table


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--scheme", "int8-dynamic", "--format", "qdq"], ["--format", "int8-static"]),
        (["--scheme", "int4-weight", "--smooth-quant", "0.5"], ["--smooth-quant"]),
        (["--scheme", "int8-dynamic", "--algorithm", "hqq"], ["--algorithm"]),
        (["--scheme", "fp16", "--block-size", "32"], ["--block-size", "fp16"]),
        (["--scheme", "int4-weight", "--block-size", "48"], ["--block-size", "48"]),
        (["--scheme", "int4-weight", "--algorithm", "gptq"], ["gptq", "--calibration"]),
        (["--scheme", "mixed"], ["--bits-per-weight"]),
        (["--scheme", "int8-static"], ["--calibration"]),
        (["--max-kl", "-1"], ["--max-kl"]),
        (["--analyze", "--max-drop", "1"], ["--analyze"]),
        (["--exclude", "nothing-is-called-so"], ["nothing-is-called-so"]),
        (["--target", "avx1"], ["avx1", "avx2"]),
        (["--max-length", "9"], ["--max-length", "--calibration"]),
    ],
)
def test_options_that_do_not_apply(
    words: list[str], says: list[str], optimized: Artifact, untouched: Path
) -> None:
    fails(2, "quantize", optimized.path, untouched / "new", *words, says=says)


CALIBRATIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "empty.jsonl": ("", ("empty.jsonl",)),
    "column.jsonl": ('{"sentence": "Hallo"}\n', ("sentence", "--column")),
    "nan.jsonl": ('{"text": NaN}\n', ("nan.jsonl",)),
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_calibration_data_that_cannot_be_used(
    name: str, optimized: Artifact, tmp_path: Path, untouched: Path
) -> None:
    content, says = CALIBRATIONS[name]
    (tmp_path / name).write_text(content)
    words = ("quantize", optimized.path, untouched / "new", "--scheme", "int8-static", "--calibration")
    fails(3, *words, tmp_path / name, says=says)


def test_tensors_that_hold_nan(
    optimized: Artifact, digits: Artifact, tmp_path: Path, untouched: Path
) -> None:
    spec = succeed("inspect", digits.path, "--json").document["result"]["components"][0]["inputs"][0]
    shape = [1 if isinstance(size, str) else size for size in spec["shape"]]
    np.savez(tmp_path / "x.npz", **{spec["name"]: np.full(shape, np.nan, np.float32)})
    words = ("quantize", digits.path, untouched / "new", "--scheme", "int8-static", "--calibration")
    fails(3, *words, tmp_path / "x.npz", says=["x.npz, row 1", "NaN"])


def test_one_sample_is_enough_and_too_few_is_said(optimized: Artifact, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "Guten Morgen"}\n')
    words = ("quantize", optimized.path, tmp_path / "q", "--scheme", "int8-static", "--no-measure")
    done = succeed(*words, "--calibration", tmp_path / "one.jsonl", "--json")
    assert any("too few" in warning for warning in done.document["warnings"])


def test_random_data_only_by_name_and_the_report_says_so(optimized: Artifact, tmp_path: Path) -> None:
    words = (
        "quantize",
        optimized.path,
        tmp_path / "q",
        "--scheme",
        "int8-static",
        "--no-measure",
        "--samples",
        "4",
    )
    done = succeed(*words, "--calibration", "random", "--json")
    assert "random" in done.document["result"]["calibration"]["source"]
