"""What generating tasks make of samples and of tokens: lengths, languages, stops, records, metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxkit.errors import InputError, OnnxkitError, UsageError
from onnxkit.inputs import Located
from onnxkit.tasks import task_for
from onnxkit.tasks.perplexity import perplexity, score_record
from onnxkit.tasks.text_generation import TextGeneration
from tests.tasks.generating_dirs import byte_fallback, decoder_dir, encoder_decoder_dir, sample, write


@dataclass(frozen=True)
class Made:
    """What the engine would give back."""

    tokens: tuple[int, ...]
    finish_reason: str = "stop"
    score: float | None = None


def llama(tmp_path: Path, **settings: Any) -> TextGeneration:
    named = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    return TextGeneration(decoder_dir(write(tmp_path, byte_fallback(), named), max_position_embeddings=16))


def test_new_text_keeps_the_space_after_the_prompt(tmp_path: Path) -> None:
    task = llama(tmp_path)
    row = task.encode({"prompt": "the"})
    [cat] = task.setup.tokenizer.encode("▁cat", add_special_tokens=False).ids[:1]
    ids = [task.setup.tokenizer.token_to_id("▁cat"), task.setup.tokenizer.token_to_id("s")]
    record = task.decode_completion([Made(tuple(ids), "length", -1.5)], row, row.length)
    assert record == {
        "text": " cats", "finish_reason": "length", "new_tokens": 2, "score": -1.5,
        "prompt_tokens": row.length,
    }  # fmt: skip
    assert cat  # the prompt's own encoding has no space before its first word
    empty = task.encode({"prompt": ""})
    assert task.decode_completion([Made((ids[0],))], empty, 1)["text"] == "cat"


def test_several_sequences_stand_beside_the_best(tmp_path: Path) -> None:
    task = llama(tmp_path)
    row = task.encode({"prompt": "the"})
    record = task.decode_completion([Made((273,)), Made((270, 271))], row, 3)
    assert [one["new_tokens"] for one in record["sequences"]] == [1, 2]
    assert record["text"] == record["sequences"][0]["text"]


def test_a_stop_string_is_cut_from_the_record(tmp_path: Path) -> None:
    task = llama(tmp_path)
    stopping = TextGeneration(task.model, stop=["ts"])
    ids = stopping.setup.tokenizer.encode("▁cats").ids[1:]
    row = stopping.encode({"prompt": "the"})
    assert stopping.decode_completion([Made(tuple(ids))], row, 3)["text"].endswith("ca")
    check = stopping.stop_check(row)
    assert check is not None
    assert [check().push(ids[-1])] == [False]
    one = check()
    assert [one.push(token) for token in ids][-1]
    assert task.stop_check(row) is None


def test_empty_prompts_begin_with_the_token_of_beginning(tmp_path: Path) -> None:
    model = sample("pydoc-gpt2", tmp_path)
    assert TextGeneration(model).encode({"prompt": ""}).extra.ids.tolist() == [0]
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": None}))
    with pytest.raises(InputError, match=r"a\.txt:1: the prompt is empty, and the model has no token"):
        TextGeneration(model).encode(Located({"prompt": ""}, "a.txt:1"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": "the " * 40}, r"the prompt has \d+ tokens, and the model's context is 16"),
        ({"other": "x"}, "there is no 'prompt'"),
        ({"prompt": 3}, "'prompt' must be a text, not int"),
    ],
)
def test_bad_prompts(given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        llama(tmp_path).encode(given)


def test_unknown_stop_tokens_name_near_ones(tmp_path: Path) -> None:
    model = llama(tmp_path).model
    assert TextGeneration(model, stop_token=["</s>"]).stop_ids == (2,)
    with pytest.raises(UsageError, match=r"--stop-token '<s/>'.* did you mean .*</s>"):
        TextGeneration(model, stop_token=["<s/>"])


def test_feeds_for_calibration_have_an_empty_cache(tmp_path: Path) -> None:
    task = llama(tmp_path)
    rows = [task.encode({"prompt": text}) for text in ("the cat", "the")]
    feeds = task.collate(rows)
    assert feeds["attention_mask"].tolist()[1][0] == 0  # padded at the left
    assert feeds["input_ids"][1][-1] == rows[1].extra.ids[-1]


def test_scored_texts(tmp_path: Path) -> None:
    task = llama(tmp_path)
    row = task.score_row({"text": "the cat " * 9})
    assert (len(row.extra.ids), row.truncated) == (16, True)
    with pytest.raises(InputError, match="1 token has no probability"):
        task.score_row({"text": ""})
    records = [score_record(np.log(np.full(n, p, np.float32))) for n, p in ((2, 0.5), (6, 0.25))]
    assert records[0]["perplexity"] == pytest.approx(2)
    found = perplexity(records)
    assert found.value == pytest.approx(2 ** ((2 + 6 * 2) / 8))
    assert not found.higher_is_better


def test_exact_match_of_targets(tmp_path: Path) -> None:
    task = llama(tmp_path)
    records = [{"text": " one"}, {"text": "two"}, {"text": "three"}]
    samples = [{"target": "one"}, {"target": ["2", "two"]}, {"target": "four"}]
    found = task.metric(records, samples)
    assert found is not None
    assert (found.name, round(found.value, 3), found.count) == ("exact_match", 0.667, 3)
    assert task.metric(records, [{}] * 3) is None


# --- text to text ---------------------------------------------------------------------------


def numbers(tmp_path: Path, task: str = "translation", **options: Any) -> Any:
    return task_for(sample("numbers-t5", tmp_path), task=task, **options)


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("English", "german"), (None, None)])
def test_prefixes_of_languages(source: str | None, target: str | None, tmp_path: Path) -> None:
    task = numbers(tmp_path, source_lang=source, target_lang=target)
    text = "translate English to German: one" if source is None else "one"
    ids = task.encode({"text": text}).features["input_ids"].tolist()
    assert task.setup.tokenizer.decode(ids) == "translate English to German: one"
    assert ids[-1] == 1
    assert task.generation == ({} if source is None else {"max_length": 128})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_lang": "gm"}, "--target-lang gm: .*known are|--target-lang gm: .*did you mean"),
        ({"target_lang": "de"}, "name --source-lang, too: en, es, fr"),
        ({"source_lang": "de", "target_lang": "de"}, "does not translate de to de"),
        ({"source_lang": "en", "target_lang": "de", "prefix": "x"}, "--prefix does not apply"),
    ],
)
def test_languages_that_the_model_does_not_have(options: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        numbers(tmp_path, **options)


def test_a_text_that_does_not_say_its_languages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt:1: .*--source-lang and --target-lang"):
        numbers(tmp_path).encode(Located({"text": "one"}, "a.txt:1"))
    assert numbers(tmp_path, "text2text-generation").encode({"text": "one"}).length == 2


def test_summaries_have_their_prefix_and_settings(tmp_path: Path) -> None:
    model = sample("numbers-t5", tmp_path)
    params = {"summarization": {"prefix": "summarize: ", "num_beams": 4, "max_length": 200}}
    model.config["task_specific_params"] = params  # type: ignore[index]
    task: Any = task_for(model, task="summarization")
    ids = task.encode({"text": "one"}).features["input_ids"].tolist()
    assert task.setup.tokenizer.decode(ids).startswith("summarize")
    assert ids == task.encode({"text": "summarize: one"}).features["input_ids"].tolist()
    assert task.generation == {"num_beams": 4, "max_length": 200}
    assert task_for(model, task="text2text-generation").generation == {}  # type: ignore[attr-defined]


def language_model(tmp_path: Path, kind: str, languages: list[str], **settings: Any) -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "a", *languages]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    named = {"tokenizer_class": kind, "eos_token": "</s>", "pad_token": "<pad>", **settings}
    return encoder_decoder_dir(write(tmp_path, tokenizer, named), "translation", decoder_start_token_id=2)


@pytest.mark.parametrize(
    ("kind", "languages", "source", "target", "ids", "first"),
    [
        ("M2M100Tokenizer", ["__en__", "__de__"], "en", "de", [5, 4, 2], 6),
        ("M2M100Tokenizer", ["__en__", "__de__"], "__en__", "__de__", [5, 4, 2], 6),
        ("NllbTokenizerFast", ["eng_Latn", "deu_Latn"], None, "deu", [5, 4, 2], 6),
        ("MBartTokenizer", ["en_XX", "de_DE"], "en", "de_DE", [4, 2, 5], 6),
        ("MBart50Tokenizer", ["en_XX", "de_DE"], "de", "en", [6, 4, 2], 5),
        ("PLBartTokenizer", ["__java__", "__en_XX__"], "java", "en_XX", [4, 2, 5], 6),
    ],
)
def test_language_tokens_by_any_of_their_names(
    kind: str,
    languages: list[str],
    source: str | None,
    target: str,
    ids: list[int],
    first: int,
    tmp_path: Path,
) -> None:
    model = language_model(tmp_path, kind, languages)
    task: Any = task_for(model, source_lang=source, target_lang=target)
    row = task.encode({"text": "a"})
    assert row.features["input_ids"].tolist() == ids
    assert row.extra.ids.tolist() == [2]
    assert task.generation["forced_bos_token_id"] == first


def test_a_language_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    model = language_model(tmp_path, "M2M100Tokenizer", ["__en__", "__de__"])
    with pytest.raises(UsageError, match=r"--target-lang de\|en"):
        task_for(model)
    with pytest.raises(UsageError, match=r"--target-lang dee.*did you mean de"):
        task_for(model, target_lang="dee")


def test_a_decoder_that_starts_with_its_language(tmp_path: Path) -> None:
    model = language_model(tmp_path, "MBartTokenizer", ["en_XX", "ro_RO"])
    model.config["decoder_start_token_id"] = 6
    task: Any = task_for(model, source_lang="en_XX", target_lang="ro")
    assert task.encode({"text": "a"}).extra.ids.tolist() == [6]
    assert "forced_bos_token_id" not in task.generation
    assert task_for(model).encode({"text": "a"}).extra.ids.tolist() == [6]


def test_marian_models_of_several_targets(tmp_path: Path) -> None:
    model = language_model(
        tmp_path, "MarianTokenizer", [">>deu<<", ">>nld<<"], source_lang="eng", target_lang="gmw"
    )
    task: Any = task_for(model, target_lang="nld")
    assert task.encode({"text": "a"}).features["input_ids"].tolist() == [6, 4, 2]
    with pytest.raises(UsageError, match=r"--target-lang deu\|nld"):
        task_for(model)
    with pytest.raises(UsageError, match="the model reads eng only"):
        task_for(model, target_lang="nld", source_lang="fra")


@pytest.mark.parametrize("option", ["source_lang", "target_lang"])
def test_models_without_languages(option: str, tmp_path: Path) -> None:
    model = language_model(tmp_path, "BartTokenizer", [])
    with pytest.raises(UsageError, match="does not apply"):
        task_for(model, task="text2text-generation", **{option: "de"})


def test_a_decoder_without_a_start(tmp_path: Path) -> None:
    model = language_model(tmp_path, "BartTokenizer", [])
    del model.config["decoder_start_token_id"]
    with pytest.raises(OnnxkitError, match="decoder_start_token_id"):
        task_for(model, task="text2text-generation")


def test_a_task_for_graphs_of_another_kind(tmp_path: Path) -> None:
    folder = write(tmp_path, byte_fallback(), {"bos_token": "<s>"})
    with pytest.raises(InputError, match="translation needs an encoder, and the model has none"):
        task_for(decoder_dir(folder), task="translation")
    with pytest.raises(InputError, match="text-generation takes no encoder, and the model has one"):
        task_for(encoder_decoder_dir(folder), task="text-generation")


def test_scored_targets(tmp_path: Path) -> None:
    task = numbers(tmp_path, "text2text-generation")
    row = task.score_row({"text": "translate English to German: one", "target": "eins"})
    ids = row.extra.ids.tolist()
    assert (ids[0], ids[-1]) == (0, 1)
    assert task.setup.tokenizer.decode(ids) == "eins"
    with pytest.raises(InputError, match="no 'target'"):
        task.score_row({"text": "x"})
