"""Text tasks on graphs that look tokens up in a table, so that every output is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.tasks import feeds, task_for
from tests.heard import Heard
from tests.model_dirs import VOCABULARY, WORDS, save_tokenizer, table, text_dir, token_graph


def ids(*tokens: str) -> list[int]:
    return [VOCABULARY[token] for token in tokens]


def classifier(folder, *, width: int = 3, config=None, **rest):
    """A classifier whose logits are the sums of the tokens' rows: "good" +label 0, "bad" +label 1."""
    values = np.zeros((len(VOCABULARY), width), np.float32)
    values[VOCABULARY["good"], 0] = 2
    values[VOCABULARY["bad"], min(1, width - 1)] = 3
    return text_dir(folder, "text-classification", values, pooled=True, config=config, **rest)


def metric_of(predictor, samples):
    return predictor.task.metric(predictor(samples), samples)


def test_classification_scores_are_a_softmax(tmp_path):
    folder = classifier(tmp_path, config={"id2label": {"0": "pos", "1": "neg", "2": "neutral"}})
    [record] = Predictor(folder)(["A good film"])
    assert list(record) == ["index", "label", "score", "scores"]
    assert (record["index"], record["label"]) == (0, "pos")
    assert record["score"] == pytest.approx(np.exp(2) / (np.exp(2) + 2), abs=1e-6)
    assert [one["label"] for one in record["scores"]] == ["pos", "neg", "neutral"]
    assert sum(one["score"] for one in record["scores"]) == pytest.approx(1, abs=1e-6)


def test_top_k_and_labels_without_names(tmp_path):
    [record] = Predictor(classifier(tmp_path), top_k=1)("bad film")
    assert record["scores"] == [{"label": "LABEL_1", "score": record["score"]}]


def test_pairs_are_read_together(tmp_path):
    predictor = Predictor(classifier(tmp_path))
    as_mapping, as_pair = predictor([{"text": "film", "text_pair": "good"}, ("film", "good")])
    assert as_mapping["score"] == as_pair["score"]
    assert as_mapping["label"] == "LABEL_0"


@pytest.mark.parametrize(
    ("config", "width", "expected"),
    [
        ({}, 1, 1 / (1 + np.exp(-2))),
        ({"problem_type": "regression"}, 1, 2.0),
        ({"problem_type": "multi_label_classification"}, 3, 1 / (1 + np.exp(-2))),
        ({"problem_type": "single_label_classification"}, 2, np.exp(2) / (np.exp(2) + 1)),
    ],
)
def test_what_turns_logits_into_scores(tmp_path, config, width, expected):
    [record] = Predictor(classifier(tmp_path, width=width, config=config))(["good"])
    assert record["score"] == pytest.approx(expected, abs=1e-6)


def test_the_activation_can_be_chosen(tmp_path):
    [record] = Predictor(classifier(tmp_path), activation="none")(["good"])
    assert record["score"] == 2.0
    with pytest.raises(UsageError, match="softmax, sigmoid or none"):
        Predictor(tmp_path, activation="tanh")


def test_half_precision_outputs_are_read_as_float32(tmp_path):
    values = table(3).astype(np.float16)
    folder = text_dir(tmp_path, "text-classification", values, pooled=True, half=True)
    [record] = Predictor(folder)(["good"])
    logits = values[ids("[CLS]", "good", "[SEP]")].sum(axis=0).astype(np.float64)
    assert record["score"] == pytest.approx((np.exp(logits) / np.exp(logits).sum()).max(), abs=1e-3)


def test_accuracy_takes_names_and_ids(tmp_path):
    predictor = Predictor(classifier(tmp_path, config={"id2label": {"0": "pos", "1": "neg", "2": "x"}}))
    samples = [
        {"text": "good", "label": "pos"},
        {"text": "bad", "label": 1},
        {"text": "good", "label": "0"},
        {"text": "good", "label": "neg"},
        {"text": "unlabelled"},
    ]
    metric = metric_of(predictor, samples)
    assert (metric.name, metric.value, metric.count, metric.higher_is_better) == ("accuracy", 0.75, 4, True)
    assert metric.details["macro_f1"] == pytest.approx((2 * 2 / 5 + 2 / 3) / 2)


def test_an_unknown_label_names_its_sample(tmp_path):
    predictor = Predictor(classifier(tmp_path))
    with pytest.raises(InputError, match="'nice' is no label"):
        metric_of(predictor, [{"text": "good", "label": "nice"}])


def test_multi_label_metric_is_f1_of_sets(tmp_path):
    config = {"problem_type": "multi_label_classification", "id2label": {"0": "p", "1": "n", "2": "x"}}
    predictor = Predictor(classifier(tmp_path, config=config))
    samples = [{"text": "good bad", "labels": ["p", "n"]}, {"text": "good", "labels": ["n"]}]
    records = predictor(samples)
    assert records[0]["labels"] == ["n", "p", "x"]  # a logit of 0 is a score of 0.5, which counts
    metric = predictor.task.metric(records, samples)
    assert (metric.name, metric.value) == ("f1", pytest.approx(2 * 3 / (3 + 6)))


def test_rerankers_are_measured_by_rank(tmp_path):
    predictor = Predictor(classifier(tmp_path, width=1))
    samples = [{"text": text, "label": label} for text, label in [("good", 2), ("bad", 3), ("film", 0.5)]]
    metric = metric_of(predictor, samples)
    assert (metric.name, metric.value) == ("spearman", pytest.approx(1.0))


def test_texts_beyond_the_limit_are_cut_with_one_warning(tmp_path):
    progress = Heard()
    predictor = Predictor(classifier(tmp_path), progress=progress)
    predictor(["the " * 50, "good", "bad " * 40])
    assert progress.warnings == [
        "2 of 3 texts were longer than the 32 tokens that are read, and were cut there (--max-length)"
    ]
    assert len(predictor.task.encode({"text": "the " * 50}).features["input_ids"]) == 32


def test_the_limit_is_the_least_of_what_is_stated(tmp_path):
    folder = classifier(tmp_path, tokenizer={"model_max_length": 10**30})
    assert Predictor(folder).task.limit == 32
    assert Predictor(folder, max_length=8).task.limit == 8
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert Predictor(folder).task.limit == 16
    with pytest.raises(InputError, match="32 positions"):
        Predictor(folder, max_length=33)
    with pytest.raises(UsageError, match="no room"):
        Predictor(folder, max_length=3)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 77}}, 77),
        ({"model_type": "markuplm", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
        (
            {
                "model_type": "altclip",
                "text_config": {
                    "model_type": "altclip_text_model",
                    "max_position_embeddings": 514,
                    "pad_token_id": 1,
                },
            },
            512,
        ),
        ({"model_type": "encoder-decoder", "encoder": {"max_position_embeddings": 48}}, 48),
        (
            {
                "model_type": "encoder-decoder",
                "encoder": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
            },
            512,
        ),
        ({"model_type": "gpt2", "n_positions": 1024, "max_position_embeddings": None}, 1024),
        ({"model_type": "deberta-v2", "max_position_embeddings": -1}, None),
    ],
)
def test_position_tables(tmp_path, config, limit):
    folder = classifier(tmp_path, tokenizer={"model_max_length": 10**30}, config=config)
    assert Predictor(folder).task.limit == limit


def test_roberta_counts_positions_after_the_padding_id(tmp_path):
    names = ["input_ids", "attention_mask", "position_ids"]
    folder = classifier(tmp_path, config={"model_type": "roberta", "pad_token_id": 1}, inputs=names)
    task = task_for(ModelDir.open(folder))
    batch = task.collate([task.encode({"text": "good"}), task.encode({"text": "a good film"})])
    assert batch["position_ids"].tolist() == [[2, 3, 4, 1, 1], [2, 3, 4, 5, 6]]


def test_only_the_models_inputs_are_made(tmp_path):
    folder = classifier(tmp_path, inputs=["input_ids", "token_type_ids"])
    task = task_for(ModelDir.open(folder))
    [batch] = feeds(task, [{"text": "a", "text_pair": "film"}], batch_size=4)
    assert list(batch) == ["input_ids", "token_type_ids"]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_feeds_pad_on_the_tokenizers_side_as_a_run_does(tmp_path):
    texts = [{"text": "good"}, {"text": "a good film"}]
    [right], [left] = (
        feeds(task_for(ModelDir.open(classifier(tmp_path / side, tokenizer={"padding_side": side}))), texts)
        for side in ("right", "left")
    )
    assert right["input_ids"].tolist() == [
        ids("[CLS]", "a", "good", "film", "[SEP]"),
        ids("[CLS]", "good", "[SEP]", "[PAD]", "[PAD]"),
    ]
    assert left["attention_mask"].tolist() == [[1] * 5, [0, 0, 1, 1, 1]]
    assert {array.dtype.name for array in left.values()} == {"int64"}


def test_a_tokenizer_without_padding_token(tmp_path):
    folder = classifier(tmp_path, tokenizer={"pad_token": None})
    records = Predictor(folder)(["good", "a good film"])
    assert [record["label"] for record in records] == ["LABEL_0"] * 2


def test_embeddings_come_from_the_graph_when_it_pools(tmp_path):
    values = table(4)
    folder = text_dir(tmp_path, "", values, outputs=["sentence_embedding"], pooled=True)
    record, _ = Predictor(folder, task="feature-extraction")(["good film", "a"])
    expected = values[ids("[CLS]", "good", "film", "[SEP]")].sum(axis=0)
    assert record["embedding"] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("pooling", "reduce"),
    [(None, lambda t: t.mean(0)), ("mean", lambda t: t.mean(0)), ("cls", lambda t: t[0]),
     ("max", lambda t: t.max(0)), ("last", lambda t: t[-1])],
)  # fmt: skip
def test_embeddings_are_pooled_over_own_tokens(tmp_path, side, pooling, reduce):
    values = table(4)
    folder = text_dir(tmp_path, "", values, outputs=["last_hidden_state"], tokenizer={"padding_side": side})
    record, _ = Predictor(folder, pooling=pooling)(["good film", "a cat sat on the mat"])
    expected = reduce(values[ids("[CLS]", "good", "film", "[SEP]")])
    assert record["embedding"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_token_vectors(tmp_path):
    values = table(4)
    folder = text_dir(tmp_path, "", values, outputs=["last_hidden_state"])
    record, _ = Predictor(folder, pooling="none")(["good", "a cat"])
    np.testing.assert_allclose(record["embeddings"], values[ids("[CLS]", "good", "[SEP]")], atol=1e-6)


def test_a_directory_of_sentence_transformers_pools_as_it_says(tmp_path):
    values = table(4)
    folder = text_dir(tmp_path, "", values, outputs=["last_hidden_state"])
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    [record] = Predictor(folder)(["good"])
    first = values[VOCABULARY["[CLS]"]]
    assert record["embedding"] == pytest.approx((first / np.linalg.norm(first)).tolist(), abs=1e-6)


def test_similarity_is_the_cosine_of_a_pair(tmp_path):
    values = table(4)
    folder = text_dir(tmp_path, "", values, outputs=["sentence_embedding"], pooled=True)
    predictor = Predictor(folder)
    assert predictor.task.name == "sentence-similarity"
    alone, pair, same = predictor(["good", {"text": "good", "text_pair": "a bad film"}, ("cat", "cat")])
    one = values[ids("[CLS]", "good", "[SEP]")].sum(0).astype(float)
    two = values[ids("[CLS]", "a", "bad", "film", "[SEP]")].sum(0).astype(float)
    assert list(alone) == ["index", "embedding"]
    assert pair == {"index": 1, "score": pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))}
    assert same["score"] == pytest.approx(1.0)


def test_similarity_is_measured_by_rank(tmp_path):
    folder = text_dir(tmp_path, "", table(4), outputs=["sentence_embedding"], pooled=True)
    predictor = Predictor(folder)
    samples = [{"text": "cat", "text_pair": other} for other in ["cat", "dog sat", "in paris"]]
    scores = [record["score"] for record in predictor(samples)]
    labelled = [{**sample, "label": -score} for sample, score in zip(samples, scores, strict=True)]
    assert metric_of(predictor, labelled).value == pytest.approx(-1)


def test_fill_mask_needs_a_mask(tmp_path):
    predictor = Predictor(text_dir(tmp_path, "fill-mask", table(len(VOCABULARY))))
    with pytest.raises(InputError, match=r"sample 1: there is no \[MASK\] in the text"):
        predictor(["a [MASK]", "a cat"])
    with pytest.raises(InputError, match=r"no \[MASK\] within the tokens that are read"):
        predictor(["the " * 40 + "[MASK]"])


def test_fill_mask_accuracy_and_text(tmp_path):
    values = np.zeros((len(VOCABULARY), len(VOCABULARY)), np.float32)
    values[VOCABULARY["[MASK]"], VOCABULARY["cat"]] = 9
    predictor = Predictor(text_dir(tmp_path, "fill-mask", values), top_k=2)
    samples = [
        {"text": "the [MASK] sat", "label": "cat"},
        {"text": "[MASK] [MASK]", "labels": ["cat", "dog"]},
    ]
    first, second = predictor(samples)
    assert (first["text"], second["text"]) == ("the cat sat", "cat cat")
    assert [len(one) for one in second["tokens"]] == [2, 2]
    metric = metric_of(predictor, samples)
    assert (metric.value, metric.count) == (pytest.approx(2 / 3), 3)


def tagger(folder, **rest):
    """anna: B-PER, new: B-LOC, york: I-LOC, the rest O."""
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    values = np.zeros((len(VOCABULARY), len(names)), np.float32)
    values[:, 0] = 5
    for token, label in {"anna": 1, "new": 3, "york": 4, "##s": 2}.items():
        values[VOCABULARY[token]] = np.eye(5)[label] * 5
    config = {"id2label": {str(index): name for index, name in enumerate(names)}}
    return text_dir(folder, "token-classification", values, config=config, **rest)


def test_entities_and_tokens_have_offsets(tmp_path):
    [record] = Predictor(tagger(tmp_path))(["Anna lives in  New York"])
    text = "Anna lives in  New York"
    assert [(e["label"], e["text"], e["start"], e["end"]) for e in record["entities"]] == [
        ("PER", "Anna", 0, 4),
        ("LOC", "New York", 15, 23),
    ]
    assert [token["label"] for token in record["tokens"]] == ["B-PER", "O", "O", "B-LOC", "I-LOC"]
    assert all(text[one["start"] : one["end"]] == one["text"] for one in record["tokens"])


def test_token_metric_by_words(tmp_path):
    predictor = Predictor(tagger(tmp_path))
    samples = [
        {"text": ["Anna", "sat"], "labels": ["B-PER", "O"]},
        {"text": "new york is good", "labels": [3, 4, 0, 3]},
    ]
    metric = metric_of(predictor, samples)
    assert (metric.name, metric.value, metric.count) == ("accuracy", pytest.approx(5 / 6), 6)
    assert metric.details["entity_f1"] == pytest.approx(2 * 2 / (2 + 3))
    with pytest.raises(InputError, match="1 labels for 2 words"):
        metric_of(predictor, [{"text": "anna sat", "labels": ["O"]}])


def test_token_metric_by_spans(tmp_path):
    spans = [{"label": "LOC", "start": 0, "end": 8}, {"label": "PER", "start": 0, "end": 3}]
    metric = metric_of(Predictor(tagger(tmp_path)), [{"text": "new york", "labels": spans}])
    assert (metric.name, metric.value) == ("entity_f1", pytest.approx(2 / 3))


def test_long_texts_are_read_in_windows_with_a_stride(tmp_path):
    progress = Heard()
    text = "a film is good " * 10 + "in new york"
    [cut] = Predictor(tagger(tmp_path), progress=progress)([text])
    [whole] = Predictor(tagger(tmp_path), progress=progress, stride=8)([text])
    assert cut["entities"] == []
    assert [entity["text"] for entity in whole["entities"]] == ["new york"]
    assert [token["text"] for token in whole["tokens"]] == text.split()
    assert len(progress.warnings) == 1
    with pytest.raises(UsageError, match="stride must be less than the 30"):
        Predictor(tmp_path, stride=30)


def reader(folder, **rest):
    """Start logits point at "paris", end logits at "paris" and "berlin"."""
    values = np.full((len(VOCABULARY), 2), -3, np.float32)
    values[VOCABULARY["paris"]] = 4
    values[VOCABULARY["berlin"]] = (1, 3)
    return text_dir(folder, "question-answering", values, outputs=["start_logits", "end_logits"], **rest)


def test_answers_are_spans_of_the_context(tmp_path):
    context = "The cat lives in  Paris, the dog in Berlin."
    [record] = Predictor(reader(tmp_path))([{"question": "where is the cat", "context": context}])
    assert list(record) == ["index", "answer", "score", "start", "end"]
    assert (record["answer"], record["start"], record["end"]) == ("Paris", 18, 23)
    assert 0.5 < record["score"] <= 1


def test_answers_are_found_in_every_window(tmp_path):
    context = "the cat sat on a mat " * 12 + "in paris " + "the dog sat " * 10
    predictor = Predictor(reader(tmp_path), top_k=3)
    [record] = predictor([{"question": "where", "context": context}])
    assert record["answer"] == "paris"
    assert context[record["start"] : record["end"]] == "paris"
    assert len(record["answers"]) == 3
    scores = [answer["score"] for answer in record["answers"]]
    assert scores == sorted(scores, reverse=True)


def test_answers_have_a_longest_length(tmp_path):
    sample = {"question": "where", "context": "paris " + "the " * 3 + "berlin"}
    values = np.full((len(VOCABULARY), 2), -3, np.float32)
    values[VOCABULARY["paris"], 0] = values[VOCABULARY["berlin"], 1] = 6
    folder = text_dir(tmp_path, "question-answering", values, outputs=["start_logits", "end_logits"])
    [long] = Predictor(folder)([sample])
    [short] = Predictor(folder, max_answer_length=3)([sample])
    assert long["answer"] == "paris the the the berlin"
    assert short["answer"] != long["answer"]


def test_the_empty_answer_competes_when_asked_for(tmp_path):
    values = np.full((len(VOCABULARY), 2), -3, np.float32)
    values[VOCABULARY["[CLS]"]] = 6
    values[VOCABULARY["paris"]] = 1
    folder = text_dir(tmp_path, "question-answering", values, outputs=["start_logits", "end_logits"])
    sample = {"question": "where", "context": "in paris"}
    assert Predictor(folder)([sample])[0]["answer"] == "paris"
    null = Predictor(folder, null_answers=True)([sample])[0]
    assert (null["answer"], null["start"], null["end"]) == ("", 0, 0)
    assert null["score"] > 0.9


def test_questions_that_fill_the_window_are_refused(tmp_path):
    with pytest.raises(InputError, match="sample 0: the question is too long"):
        Predictor(reader(tmp_path))([{"question": "where " * 40, "context": "in paris"}])


def test_exact_match(tmp_path):
    predictor = Predictor(reader(tmp_path))
    samples = [
        {"question": "where", "context": "in Paris.", "target": "the paris!"},
        {"question": "where", "context": "in Paris.", "labels": ["berlin", "new york"]},
        {"question": "where", "context": "in Paris.", "label": {"text": ["Paris"], "answer_start": [3]}},
    ]
    metric = metric_of(predictor, samples)
    assert (metric.name, metric.value, metric.count) == ("exact_match", pytest.approx(2 / 3), 3)


def test_missing_columns_name_the_sample_and_what_it_has(tmp_path):
    predictor = Predictor(classifier(tmp_path))
    with pytest.raises(InputError, match=r"sample 1: there is no 'text' \(columns: sentence\); rename"):
        predictor([{"text": "a"}, {"sentence": "b"}])
    with pytest.raises(InputError, match=r"sample 0: 'text' must be a text, not int"):
        predictor([{"text": 3}])
    with pytest.raises(InputError, match=r"sample 0: its 'text' is null"):
        predictor([{"text": None}])


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    predictor = Predictor(classifier(tmp_path))
    with pytest.raises(InputError, match=r"sample 1: 'text' is no Unicode text: character 2 is half"):
        predictor([{"text": "ä"}, {"text": json.loads('"a\\ud83d"')}])
    with pytest.raises(InputError, match=r"sample 0: 'text_pair' is no Unicode text"):
        predictor([{"text": "a", "text_pair": b"\xe9".decode("utf-8", "surrogateescape")}])


def test_a_missing_tokenizer_says_how_to_get_one(tmp_path):
    folder = classifier(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing; .*save_pretrained"):
        Predictor(folder)


def test_a_broken_tokenizer(tmp_path):
    folder = classifier(tmp_path)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match=r"tokenizer\.json: not a readable tokenizer"):
        Predictor(folder)


def test_a_task_that_the_model_does_not_have_names_its_outputs(tmp_path):
    folder = classifier(tmp_path)
    with pytest.raises(InputError, match="start_logits, but the model has logits"):
        Predictor(folder, task="question-answering")


def test_inputs_that_no_text_can_fill(tmp_path):
    folder = classifier(tmp_path, inputs=["input_ids", "attention_mask", "past"])
    with pytest.raises(InputError, match="cannot supply the model's input past"):
        Predictor(folder)


def test_int32_inputs_get_int32(tmp_path):
    folder = classifier(tmp_path)
    task = task_for(ModelDir.open(folder))
    spec = task.inputs["input_ids"]
    task.inputs["input_ids"] = type(spec)(name=spec.name, dtype="int32", shape=spec.shape)
    [batch] = feeds(task, [{"text": "good"}])
    assert batch["input_ids"].dtype == np.int32


def test_a_bare_onnx_file_beside_its_tokenizer(tmp_path):
    token_graph(tmp_path / "some.onnx", table(2), pooled=True)
    save_tokenizer(tmp_path)
    [record] = Predictor(tmp_path / "some.onnx", task="text-classification")(["good"])
    assert record["label"].startswith("LABEL_")


def test_graphs_with_fixed_axes_are_filled(tmp_path):
    free = Predictor(classifier(tmp_path / "free"))
    fixed = Predictor(classifier(tmp_path / "fixed", axes=(4, 12)))
    samples = ["good", "a bad film", "cat", "good film", "the " * 5, "mat"]
    assert fixed.task.limit == 12
    records = fixed(samples)
    assert [r["label"] for r in records] == [r["label"] for r in free(samples)]
    for one, other in zip(records, free(samples), strict=True):
        assert one["score"] == pytest.approx(other["score"])
    batches = list(feeds(fixed.task, ({"text": text} for text in samples), batch_size=8))
    assert [batch["input_ids"].shape for batch in batches] == [(4, 12)] * 2


@pytest.mark.parametrize("seed", range(4))
def test_the_best_span_of_all_windows_wins(tmp_path, seed):
    """Against a search through every span of every window."""
    values = table(2, seed)
    folder = text_dir(tmp_path, "question-answering", values, outputs=["start_logits", "end_logits"])
    predictor = Predictor(folder, max_answer_length=4, stride=5)
    context = " ".join(np.random.default_rng(seed).permutation(WORDS[:18] * 3))
    [record] = predictor([("who lives", context)])
    best = (-1.0, "")
    for row in predictor.task.rows([{"question": "who lives", "context": context}])[0]:
        encoding, inside = row.extra.encoding, row.extra.candidates
        pool = inside | (np.arange(len(inside)) == 0)  # the first token takes part in the softmax
        start, end = (np.exp(values[encoding.ids, column].astype(float)) * pool for column in (0, 1))
        start, end = start / start.sum(), end / end.sum()
        for first in np.flatnonzero(inside):
            for last in range(first, min(first + 4, len(inside))):
                if inside[last]:
                    text = context[encoding.offsets[first][0] : encoding.offsets[last][1]]
                    best = max(best, (start[first] * end[last], text))
    assert record["answer"] == best[1]
