"""Batching, the registry, and the small statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Located
from onnxkit.tasks import REGISTRY, Encoded, task_for, task_options
from onnxkit.tasks.batches import by_length, chunks, located
from onnxkit.tasks.entity_metric import _spans_of
from onnxkit.tasks.numerics import sigmoid, softmax
from onnxkit.tasks.registry import task_class
from onnxkit.tasks.squad import normalized, token_f1
from onnxkit.tasks.statistics import macro_f1, mean_ranks, spearman
from tests.model_dirs import table, text_dir


def encoded(length: int) -> Encoded:
    return Encoded(features={}, length=length)


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
def test_batches_hold_every_row_once_with_neighbours_in_length(lengths, batch_size):
    batches = list(by_length([encoded(length) for length in lengths], batch_size))
    flat = [position for batch in batches for position in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[position] for position in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_chunks_grow_from_small_ones():
    assert [len(chunk) for chunk in chunks(range(100), 32, first=4)] == [4, 8, 16, 32, 32, 8]
    assert [len(chunk) for chunk in chunks(range(5), 3)] == [3, 2]
    assert list(chunks([], 3)) == []


def test_samples_know_their_place(tmp_path):
    task = task_for(ModelDir.open(text_dir(tmp_path, "text-classification", table(2), pooled=True)))
    kept = Located({"text": "b"}, "x:7")
    first, second = located(task, ["a", kept])
    assert (dict(first), first.where) == ({"text": "a"}, "sample 0")
    assert second is kept


@pytest.mark.parametrize("name", REGISTRY)
def test_every_row_of_the_registry_is_that_task(name):
    assert task_class(name).name == name


def test_options_of_a_task():
    assert task_options("text-classification") == ("max_length", "top_k", "activation")
    assert task_options("raw") == ()


def test_an_option_that_does_not_apply_is_refused(tmp_path):
    model = ModelDir.open(text_dir(tmp_path, "text-classification", table(2), pooled=True))
    with pytest.raises(UsageError, match="text-classification has no option 'top'; it takes top_k"):
        task_for(model, top=3)
    with pytest.raises(UsageError, match="no option 'pooling'"):
        task_for(model, pooling="mean")
    assert task_for(model, pooling=None).name == "text-classification"
    with pytest.raises(UsageError, match="raw has no option 'top_k'; it takes none"):
        task_for(model, task="raw", top_k=1)


def test_a_task_without_a_runner(tmp_path):
    model = ModelDir.open(text_dir(tmp_path, "text-classification", table(2), pooled=True))
    with pytest.raises(InputError, match=r"'depth-estimation' cannot be run on samples .*; pass raw"):
        task_for(model, task="depth-estimation")
    assert task_for(model, task="sentiment-analysis").name == "text-classification"


_NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


@given(_NUMBERS)
@settings(deadline=None)
def test_spearman_is_scipys(pairs):
    stats = pytest.importorskip("scipy.stats")
    values, truth = zip(*pairs, strict=True)
    metric = spearman(values, truth)
    if len(set(values)) == 1 or len(set(truth)) == 1:
        assert metric is None
    else:
        assert metric.value == pytest.approx(stats.spearmanr(values, truth).statistic, abs=1e-9)
    np.testing.assert_allclose(mean_ranks(np.array(values)), stats.rankdata(values))


def test_macro_f1_by_hand():
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 3)
    assert macro_f1([], []) == 0


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
def test_scores_are_finite_and_sum_to_one(logits):
    values = np.array([logits], np.float32)
    assert softmax(values).sum() == pytest.approx(1, abs=1e-5)
    with np.errstate(over="raise", invalid="raise"):
        one = sigmoid(values)
    assert ((one >= 0) & (one <= 1)).all()
    exact = 1 / (1 + np.exp(-values.astype(np.longdouble)))
    np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-30)


def test_entities_of_word_labels():
    assert _spans_of(["B-A", "I-A", "B-A", "O", "I-B", "B"]) == {("A", 0, 1), ("A", 2, 2), ("B", 4, 5)}


def test_answers_as_squad_compares_them():
    assert normalized("The  Cat, sat!") == "cat sat"
    assert token_f1("the cat sat", "A cat") == pytest.approx(2 / 3)
    assert token_f1("", "the") == 1.0
    assert token_f1("dog", "cat") == 0.0
