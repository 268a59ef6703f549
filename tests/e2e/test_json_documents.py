"""Every command's `--json` output validates against its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.e2e.harness import DIGITS, LANGID, ROOT, Artifact, fails, run, succeed


def validate(document: Any, name: str) -> None:
    """Check a document against docs/schemas/NAME.json."""
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("fixture", "command"),
    [
        ("langid", "export"), ("digits", "export"), ("optimized", "optimize"), ("dynamic", "quantize"),
        ("static", "quantize"),
    ],
)  # fmt: skip
def test_stages(fixture: str, command: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(fixture)
    validate(artifact.done.document, command)


@pytest.mark.parametrize("fixture", ["langid", "optimized", "dynamic", "static", "digits"])
def test_inspect(fixture: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(fixture)
    validate(succeed("inspect", artifact.path, "--json").document, "inspect")


def test_run_on_texts_and_images(langid: Artifact, digits: Artifact) -> None:
    validate(succeed("run", langid.path, "Guten Morgen", "--json").document, "run")
    image = DIGITS / json.loads((DIGITS / "evaluation.jsonl").read_text().splitlines()[0])["image"]
    validate(succeed("run", digits.path, image, "--json").document, "run")


def test_run_on_raw_tensors(langid: Artifact, tmp_path: Path) -> None:
    ids = np.ones((1, 4), np.int64)
    np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=ids, token_type_ids=ids * 0)
    validate(succeed("run", langid.path, "--inputs", tmp_path / "x.npz", "--json").document, "run")


def test_lines(langid: Artifact) -> None:
    done = succeed("run", langid.path, "eins", "two", "--jsonl")
    for line in done.out.splitlines():
        validate(json.loads(line), "run-jsonl")


def test_profile(langid: Artifact, dynamic: Artifact) -> None:
    words = ("profile", langid.path, dynamic.path, "--runs", "5", "--batch", "1,2", "--json")
    validate(succeed(*words).document, "profile")


def test_verify(langid: Artifact, dynamic: Artifact) -> None:
    validate(succeed("verify", langid.path, "--json").document, "verify")
    validate(succeed("verify", dynamic.path, "--json").document, "verify")


def test_doctor() -> None:
    validate(succeed("doctor", "--json").document, "doctor")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "missing", "x"),
        ("nosuch",),
        ("quantize", "a", "b", "--nosuch"),
        ("export", str(LANGID)),
        ("optimize", "a", "b", "-O9"),
    ],
)
def test_failures(words: tuple[str, ...]) -> None:
    done = run(*words, "--json")
    assert done.code in (2, 3)
    validate(done.document, "error")
    fails(done.code, *words)
