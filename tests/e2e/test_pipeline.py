"""The whole path on the sample models: export, optimize, quantize, run, profile, verify, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.harness import DIGITS, LANGID, Artifact, run, succeed

HELD_OUT = LANGID / "evaluation.jsonl"


def result(artifact: Artifact) -> Any:
    """Return what the command reported about an artifact."""
    return artifact.done.document["result"]


def accuracy(model: Path) -> float:
    """Return the share of held-out texts whose language `run` gets right."""
    truth = [json.loads(line)["label"] for line in HELD_OUT.read_text().splitlines()]
    done = succeed("run", model, "--file", HELD_OUT, "--jsonl", "--quiet")
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [record["index"] for record in records] == list(range(len(truth)))
    return float(np.mean([record["label"] == label for record, label in zip(records, truth, strict=True)]))


def test_every_stage_lands_in_the_history(static: Artifact) -> None:
    history = succeed("inspect", static.path, "--json").document["result"]["history"]
    assert [entry["stage"] for entry in history] == ["export", "optimize", "quantize"]
    last = history[-1]
    assert last["argv"][:2] == ["onnxkit", "quantize"]
    assert last["options"]["scheme"] == {"value": "int8-static", "source": "command line"}
    assert last["options"]["seed"] == {"value": 0, "source": "default"}


def test_the_argv_of_the_history_repeats_the_stage(dynamic: Artifact, tmp_path: Path) -> None:
    history = succeed("inspect", dynamic.path, "--json").document["result"]["history"]
    words = [str(tmp_path / "again") if word == str(dynamic.path) else word for word in history[-1]["argv"]]
    succeed(*words[1:])
    again, first = (path / "model.onnx" for path in (tmp_path / "again", dynamic.path))
    assert again.read_bytes() == first.read_bytes()


def test_options_come_from_the_environment_too(langid: Artifact) -> None:
    done = succeed("run", langid.path, "hello", env={"ONNXKIT_THREADS": "1", "ONNXKIT_JSON": "1"})
    assert done.document["command"] == "run"
    assert "1 thread (requested)" in done.err


def test_accuracy_on_held_out_texts_stays(
    langid: Artifact, optimized: Artifact, dynamic: Artifact, static: Artifact
) -> None:
    exported = accuracy(langid.path)
    assert exported >= 0.9
    assert accuracy(optimized.path) == pytest.approx(exported, abs=0.002)
    assert accuracy(dynamic.path) >= exported - 0.01
    assert accuracy(static.path) >= exported - 0.01


def test_optimize_takes_what_export_wrote_and_verify_agrees(langid: Artifact, optimized: Artifact) -> None:
    for artifact in (langid, optimized):
        report = succeed("verify", artifact.path, "--json").document["result"]
        assert report["passed"] is True
        assert report["worst"]["relative"] <= 1e-4


@pytest.mark.parametrize(
    "level", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 3]
)
def test_every_level_of_optimize_gives_a_model_that_runs(
    level: int, langid: Artifact, tmp_path: Path
) -> None:
    succeed("optimize", langid.path, tmp_path / "out", f"-O{level}")
    assert succeed("run", tmp_path / "out", "Guten Morgen", "--json").document["result"][0]["label"]


def test_run_reads_texts_files_and_standard_input_alike(langid: Artifact, tmp_path: Path) -> None:
    texts = ["Guten Morgen, liebe Sorgen", "Bonjour tout le monde"]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "t.csv").write_text("sentence\n" + "".join(f'"{text}"\n' for text in texts))
    one = succeed("run", langid.path, *texts, "--json").document["result"]
    assert len(one) == 2
    for words, stdin in (
        (["--file", tmp_path / "t.txt"], None),
        (["--file", tmp_path / "t.jsonl"], None),
        (["--file", tmp_path / "t.csv", "--column", "text=sentence"], None),
        (["-"], "\n".join(texts)),
        (["--file", "-"], "\n".join(texts)),
    ):
        other = succeed("run", langid.path, *words, "--json", stdin=stdin).document["result"]
        assert [record["label"] for record in other] == [record["label"] for record in one]
        scores = [[record["score"] for record in records] for records in (other, one)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_the_table_for_people_holds_texts_and_labels(langid: Artifact) -> None:
    done = succeed("run", langid.path, "Guten [/] Morgen\x1b[31m", "--top-k", "2")
    lines = done.out.splitlines()
    assert lines[0].split()[:3] == ["input", "label", "score"]
    assert "Guten [/] Morgen\\x1b[31m" in lines[1]
    assert "\x1b" not in done.out + done.err


def test_a_text_that_looks_like_an_option(langid: Artifact) -> None:
    assert len(succeed("run", langid.path, "--json", "--", "-5", "--json").document["result"]) == 2


def test_images(digits: Artifact) -> None:
    folder = DIGITS / "evaluation"
    lines = [json.loads(line) for line in (DIGITS / "evaluation.jsonl").read_text().splitlines()]
    done = succeed("run", digits.path, *(DIGITS / line["image"] for line in lines[:3]), "--json")
    listed = succeed("run", digits.path, "--file", DIGITS / "evaluation.jsonl", "--jsonl", "--quiet")
    records = [json.loads(line) for line in listed.out.splitlines()]
    right = [str(record["label"]) == str(line["label"]) for record, line in zip(records, lines, strict=True)]
    assert np.mean(right) >= 0.96
    assert [one["label"] for one in done.document["result"]] == [one["label"] for one in records[:3]]
    if folder.is_dir():
        whole = succeed("run", digits.path, "--file", folder, "--jsonl", "--quiet")
        assert len(whole.out.splitlines()) == len(list(folder.iterdir()))


@pytest.mark.slow
def test_images_quantize_both_ways(digits: Artifact, tmp_path: Path) -> None:
    for scheme in ("int8-dynamic", "int8-static"):
        done = succeed(
            "quantize", digits.path, tmp_path / scheme, "--scheme", scheme, "--eval",
            DIGITS / "evaluation.jsonl", "--json",
            *(["--calibration", DIGITS / "calibration.jsonl"] if scheme == "int8-static" else []),
        )  # fmt: skip
        metric = done.document["result"]["measurement"]["metric"]
        assert metric["after"] >= metric["before"] - 0.01


def test_raw_tensors(langid: Artifact, tmp_path: Path) -> None:
    ids = np.array([[2, 7, 9, 3]], np.int64)
    np.savez(
        tmp_path / "x.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids)
    )
    words = ("run", langid.path, "--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    [summary] = succeed(*words, "--json").document["result"]
    with np.load(tmp_path / "y.npz") as arrays:
        logits = arrays["logits"]
    assert summary["shape"] == list(logits.shape)
    assert summary["max"] == pytest.approx(float(logits.max()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz", "y.npz"]


def test_profile_compares_side_by_side(langid: Artifact, dynamic: Artifact, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    words = ("profile", langid.path, dynamic.path, "--batch", "1,2", "--sequence", "8", "--runs", "5")
    models = succeed(*words, "--json").document["result"]["models"]
    assert [len(model["measurements"]) for model in models] == [2, 2]
    assert models[0]["measurements"][0]["latency"]["runs"] == 5
    assert models[1]["measurements"][0]["ratio"]["paired"] > 0
    table = succeed("profile", langid.path, "--runs", "3", "--threads", "1,2", "--no-operators").out
    assert "1 thread" in table and "2 threads" in table
    succeed("profile", langid.path, "--runs", "3", "--trace", trace)
    assert any(event.get("cat") == "Node" for event in json.loads(trace.read_text()))


def test_quiet_says_nothing(langid: Artifact, tmp_path: Path) -> None:
    done = succeed("quantize", langid.path, tmp_path / "q", "--no-measure", "--quiet")
    assert done.out == ""
    assert all(line.startswith("warning:") for line in done.err.splitlines())


def test_an_export_that_is_not_verified_says_so(tmp_path: Path) -> None:
    done = succeed("export", "-m", LANGID, tmp_path / "x", "--no-verify", "--json")
    assert any("verif" in warning for warning in done.document["warnings"])
    assert succeed("inspect", tmp_path / "x", "--json").document["result"]["verified"] is None


def test_a_failed_gate_prints_its_report_and_its_code(langid: Artifact, tmp_path: Path) -> None:
    """A weight that changed although digests were brought in line: only the reference tells."""
    import hashlib
    import shutil

    model = Path(shutil.copytree(langid.path, tmp_path / "model"))
    content = bytearray((model / "model.onnx").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    (model / "model.onnx").write_bytes(content)
    manifest = json.loads((model / "onnxkit.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (model / "onnxkit.json").write_text(json.dumps(manifest))
    done = run("verify", model, "--json")
    assert done.code == 7, done.err
    assert done.document["error"]["kind"] == "gate"
    assert done.document["result"]["passed"] is False
    assert len(done.errors) == 1
