"""The sample models are what their cards say: complete, small, honest about their data, and accurate."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("torch")
pytest.importorskip("transformers")
for _package in ("babel", "django", "num2words", "sklearn"):
    pytest.importorskip(_package, reason="the data of the sample models comes from it")

from sample_models.common import ROOT, read_jsonl, side  # noqa: E402
from sample_models.train import NAMES, load, main  # noqa: E402

TEXT_FILES = {"tokenizer.json", "tokenizer_config.json"}
FILES = {
    "langid-bert": TEXT_FILES,
    "digits-vit": {"preprocessor_config.json"},
    "pydoc-gpt2": TEXT_FILES | {"generation_config.json"},
    "numbers-t5": TEXT_FILES | {"generation_config.json"},
}
COMMON = {
    "model.safetensors",
    "config.json",
    "README.md",
    "metrics.json",
    "calibration.jsonl",
    "evaluation.jsonl",
}
COLUMNS = {
    "langid-bert": {"text", "label"},
    "digits-vit": {"image", "label"},
    "pydoc-gpt2": {"text"},
    "numbers-t5": {"text", "target", "number"},
}
ARCHITECTURE = {
    "langid-bert": "BertForSequenceClassification",
    "digits-vit": "ViTForImageClassification",
    "pydoc-gpt2": "GPT2LMHeadModel",
    "numbers-t5": "T5ForConditionalGeneration",
}
PROMISED = {"langid-bert": 0.90, "digits-vit": 0.96, "numbers-t5": 0.95}
MEGABYTE = 1_000_000
each_model = pytest.mark.parametrize("name", NAMES)


def size(directory: Path) -> int:
    """Return the bytes of all files below ``directory``."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / name / "config.json").read_text(encoding="utf-8"))
    return loaded


def metrics(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / name / "metrics.json").read_text(encoding="utf-8"))
    return loaded


def module(name: str) -> ModuleType:
    loaded = load(name)
    assert isinstance(loaded, ModuleType)
    return loaded


@each_model
def test_directory_has_every_promised_file(name: str) -> None:
    assert {path.name for path in (ROOT / name).iterdir()} >= COMMON | FILES[name]
    assert config(name)["architectures"] == [ARCHITECTURE[name]]


@each_model
def test_model_is_small(name: str) -> None:
    assert size(ROOT / name) <= 6 * MEGABYTE


def test_all_models_together_are_small() -> None:
    assert sum(size(ROOT / name) for name in NAMES) <= 16 * MEGABYTE


@each_model
def test_sets_have_their_size_and_columns(name: str) -> None:
    calibration = read_jsonl(ROOT / name / "calibration.jsonl")
    evaluation = read_jsonl(ROOT / name / "evaluation.jsonl")
    assert 64 <= len(calibration) <= 256
    assert len(evaluation) >= 500
    assert {frozenset(row) for row in (*calibration, *evaluation)} == {frozenset(COLUMNS[name])}
    if "label" in COLUMNS[name]:
        assert {row["label"] for row in evaluation} == set(config(name)["id2label"].values())


@pytest.mark.parametrize("name", ["langid-bert", "pydoc-gpt2", "numbers-t5", "digits-vit"])
def test_sets_share_nothing_with_each_other_or_with_training(name: str) -> None:
    sample = module(name)
    stored = [read_jsonl(ROOT / name / f"{part}.jsonl") for part in ("calibration", "evaluation")]

    def keys(rows: list[dict[str, str]]) -> set[str | bytes]:
        if name == "digits-vit":
            return {sample.image_of(row).tobytes() for row in rows}
        if name == "numbers-t5":
            return {row["number"] for row in rows}
        return {row["text"] for row in rows}

    train, calibration, evaluation = keys(sample.splits().train), keys(stored[0]), keys(stored[1])
    assert train
    assert not train & calibration
    assert not train & evaluation
    assert not calibration & evaluation


def test_stored_digits_are_the_images_that_the_split_names() -> None:
    from PIL import Image

    sample = module("digits-vit")
    for part in ("calibration", "evaluation"):
        for row in read_jsonl(ROOT / "digits-vit" / f"{part}.jsonl"):
            with Image.open(ROOT / "digits-vit" / row["image"]) as stored:
                assert stored.tobytes() == sample.image_of(row).tobytes()


def test_number_words_say_their_number() -> None:
    from num2words import num2words

    sample = module("numbers-t5")
    languages = {prefix: pair for pair, prefix in sample.PREFIX.items()}
    for row in read_jsonl(ROOT / "numbers-t5" / "evaluation.jsonl")[:100]:
        prefix = re.match(r".*?: ", row["text"])
        assert prefix
        source, target = languages[prefix[0]]
        assert row["text"] == prefix[0] + num2words(int(row["number"]), lang=source)
        assert row["target"] == num2words(int(row["number"]), lang=target)


def test_config_of_the_translator_has_the_prefixes() -> None:
    tasks = config("numbers-t5")["task_specific_params"]
    assert tasks["translation_en_to_de"]["prefix"] == "translate English to German: "
    assert len(tasks) == 12


@pytest.mark.parametrize("name", ["langid-bert", "pydoc-gpt2", "numbers-t5"])
def test_tokenizer_pads_and_knows_the_models_length(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / name)
    positions = config(name).get("max_position_embeddings") or config(name)["n_positions"]
    assert tokenizer.model_max_length == positions
    assert tokenizer.pad_token_id == config(name)["pad_token_id"]
    assert tokenizer.vocab_size <= config(name)["vocab_size"] == len(tokenizer)
    batch = tokenizer(["one", "one two three four five six"], padding=True)
    assert batch["attention_mask"][0][-1] == 0


@each_model
def test_card_states_the_measured_metric(name: str) -> None:
    measured = metrics(name)
    card = (ROOT / name / "README.md").read_text(encoding="utf-8")
    assert f"| {measured['metric']} | {measured['value']:.4f} | {measured['samples']} |" in card
    assert f"[{name}]({name}/)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert measured["samples"] == len(read_jsonl(ROOT / name / "evaluation.jsonl"))
    if name in PROMISED:
        assert measured["value"] >= PROMISED[name]


@pytest.mark.parametrize("name", ["langid-bert", "digits-vit", "numbers-t5"])
def test_stored_model_is_accurate_on_a_part_of_the_evaluation_set(name: str) -> None:
    rows = read_jsonl(ROOT / name / "evaluation.jsonl")[: 60 if name == "numbers-t5" else 200]
    assert load(name).evaluate(ROOT / name, rows) >= PROMISED[name] - 0.04


def test_stored_language_model_predicts_documentation() -> None:
    rows = read_jsonl(ROOT / "pydoc-gpt2" / "evaluation.jsonl")[:64]
    assert load("pydoc-gpt2").evaluate(ROOT / "pydoc-gpt2", rows) < metrics("pydoc-gpt2")["value"] * 1.5


@pytest.mark.slow
@each_model
def test_metric_of_the_card_is_measured_again(name: str) -> None:
    rows = read_jsonl(ROOT / name / "evaluation.jsonl")
    assert load(name).evaluate(ROOT / name, rows) == pytest.approx(metrics(name)["value"], rel=0.005)


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_side_depends_on_the_key_alone_and_keeps_the_shares() -> None:
    sides = [side(str(number), 0.1, 0.2) for number in range(5000)]
    assert sides == [side(str(number), 0.1, 0.2) for number in range(5000)]
    assert 0.18 < sides.count("evaluation") / 5000 < 0.22
    assert 0.08 < sides.count("calibration") / 5000 < 0.12
