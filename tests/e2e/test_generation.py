"""Generating sample models through every stage, as the README shows it: a decoder and an encoder-decoder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import SAMPLES, Artifact, fails, run, succeed

NUMBERS, PYDOC = SAMPLES / "numbers-t5", SAMPLES / "pydoc-gpt2"
PROMPT = "The future of AI is"


@pytest.fixture(scope="session")
def numbers(build: Path) -> Artifact:
    """The exported numbers-t5."""
    return Artifact(build / "numbers", succeed("export", NUMBERS, build / "numbers", "--json"))


@pytest.fixture(scope="session")
def numbers_optimized(build: Path, numbers: Artifact) -> Artifact:
    """The optimized numbers-t5."""
    return Artifact(build / "numbers-o2", succeed("optimize", numbers.path, build / "numbers-o2", "--json"))


@pytest.fixture(scope="session")
def pydoc(build: Path) -> Artifact:
    """The exported pydoc-gpt2."""
    return Artifact(build / "pydoc", succeed("export", PYDOC, build / "pydoc", "--json"))


@pytest.fixture(scope="session")
def pydoc_optimized(build: Path, pydoc: Artifact) -> Artifact:
    """The optimized pydoc-gpt2."""
    return Artifact(build / "pydoc-o2", succeed("optimize", pydoc.path, build / "pydoc-o2", "--json"))


def records(*words: str | Path, **more: Any) -> list[dict[str, Any]]:
    """Run with --json and return the records."""
    found: list[dict[str, Any]] = succeed("run", *words, "--json", **more).document["result"]
    return found


def exact_match(model: Path, count: int) -> float:
    """Return the share of the first held-out samples that come out as their target, letter by letter."""
    lines = (NUMBERS / "evaluation.jsonl").read_text().splitlines()[:count]
    text = "\n".join(lines)
    done = succeed("run", model, "--file", "-", "--format", "jsonl", "--jsonl", "--quiet", stdin=text)
    made = [json.loads(line) for line in done.out.splitlines()]
    assert [record["index"] for record in made] == list(range(len(lines)))
    wanted = [json.loads(line)["target"] for line in lines]
    return sum(record["text"] == right for record, right in zip(made, wanted, strict=True)) / len(lines)


def test_numbers_keep_their_exact_match(
    numbers: Artifact, numbers_optimized: Artifact, tmp_path: Path
) -> None:
    exported = exact_match(numbers.path, 200)
    assert exported >= 0.98
    assert exact_match(numbers_optimized.path, 200) == exported
    succeed("quantize", numbers_optimized.path, tmp_path / "int8", "--scheme", "int8-dynamic")
    assert exact_match(tmp_path / "int8", 200) >= exported - 0.01


def test_perplexity_of_held_out_texts_survives_optimize(pydoc: Artifact, pydoc_optimized: Artifact) -> None:
    lines = (PYDOC / "evaluation.jsonl").read_text().splitlines()[:40]
    stored = json.loads((PYDOC / "metrics.json").read_text())
    found = []
    for model in (pydoc.path, pydoc_optimized.path):
        made = records(model, "--score", "--file", "-", "--format", "jsonl", stdin="\n".join(lines))
        assert len(made) == len(lines)
        found.append([record["perplexity"] for record in made])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    middle = math.exp(sum(map(math.log, found[0])) / len(found[0]))
    assert middle == pytest.approx(stored["value"], rel=0.5)  # per text here, per token there


def test_several_continuations_of_a_prompt(pydoc: Artifact) -> None:
    words = (pydoc.path, PROMPT, "--num-return-sequences", "3", "--max-length", "50")
    [record] = records(*words, "--do-sample", "--seed", "1")
    texts = [sequence["text"] for sequence in record["sequences"]]
    assert len(texts) == 3
    assert len(set(texts)) == 3
    assert records(*words, "--do-sample", "--seed", "1") == [record]


def test_greedy_is_the_same_at_every_stage_and_batch_size(pydoc: Artifact, pydoc_optimized: Artifact) -> None:
    prompts = (PROMPT, "Return", "This function takes a string and two numbers; it is called when")
    one = [records(pydoc.path, prompt, "--max-new-tokens", "12")[0]["text"] for prompt in prompts]
    for model in (pydoc.path, pydoc_optimized.path):
        together = records(model, *prompts, "--max-new-tokens", "12", "--batch-size", "3")
        assert [record["text"] for record in together] == one


def test_speculation_changes_nothing_but_the_time(pydoc_optimized: Artifact) -> None:
    plain = records(pydoc_optimized.path, PROMPT, "--max-new-tokens", "40")
    guessed = records(pydoc_optimized.path, PROMPT, "--max-new-tokens", "40", "--speculate", "ngram")
    assert guessed[0]["text"] == plain[0]["text"]
    drafted = records(pydoc_optimized.path, PROMPT, "--max-new-tokens", "40", "--draft", pydoc_optimized.path)
    assert drafted[0]["text"] == plain[0]["text"]


def test_a_schema_is_kept(pydoc_optimized: Artifact, tmp_path: Path) -> None:
    schema = {
        "type": "object", "required": ["n"], "additionalProperties": False,
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    }  # fmt: skip
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    words = (pydoc_optimized.path, PROMPT, "--json-schema", tmp_path / "schema.json")
    [record] = records(*words, "--max-new-tokens", "100")
    assert 0 <= json.loads(record["text"])["n"] <= 99
    [record] = records(pydoc_optimized.path, PROMPT, "--regex", "(yes|no)")
    assert record["text"] in ("yes", "no")


def test_what_a_generating_run_says_on_stderr(pydoc: Artifact) -> None:
    done = succeed("run", pydoc.path, PROMPT, "--max-new-tokens", "5")
    assert "tokens/s" in done.err
    assert "tokens/s" not in done.out


def test_weight_only_quantization_of_a_decoder(pydoc_optimized: Artifact, tmp_path: Path) -> None:
    succeed("quantize", pydoc_optimized.path, tmp_path / "int4", "--scheme", "int4-weight")
    [record] = records(tmp_path / "int4", PROMPT, "--max-new-tokens", "8")
    assert record["new_tokens"] == 8 or record["finish_reason"] == "stop"


def test_profile_of_a_generating_model(pydoc_optimized: Artifact, numbers_optimized: Artifact) -> None:
    done = succeed("profile", pydoc_optimized.path, "--json")
    assert done.document["result"]["models"]
    succeed("profile", numbers_optimized.path)


def test_bad_input_of_generation(pydoc: Artifact, numbers: Artifact, tmp_path: Path) -> None:
    fails(2, "run", pydoc.path, PROMPT, "--stop-token", "<|nope|>", says=["<|nope|>"])
    fails(2, "run", pydoc.path, PROMPT, "--temperature", "-1", says=["--temperature"])
    fails(3, "run", pydoc.path, "word " * 600, says=["256"])
    fails(3, "run", pydoc.path, "--chat", says=["chat template"], stdin="hello\n")
    fails(3, "run", pydoc.path, PROMPT, "--draft", numbers.path)
    (tmp_path / "schema.json").write_text('{"type": "nothing"}')
    fails(2, "run", pydoc.path, PROMPT, "--json-schema", tmp_path / "schema.json")
    assert run("run", pydoc.path, "").code in (0, 3)
