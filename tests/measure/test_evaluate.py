"""The task's metric over samples: what is predicted, what is scored, what is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from onnxkit.measure.evaluate import evaluate, is_labelled


class FakePredictor:
    """Says each sample's text as its label, or scores it; its task's metric is what it was given."""

    class task:
        needs_labels = True

        @staticmethod
        def metric(records: list[Any], samples: list[Any]) -> Any:
            return records, samples

    @staticmethod
    def stream(samples: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for index, sample in enumerate(samples):
            yield {"index": index, "label": sample["text"]}

    @staticmethod
    def score(samples: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for index, _ in enumerate(samples):
            yield {"index": index, "log_probability": -1.0}


def test_evaluate_streams_and_keeps_only_the_truth() -> None:
    predictor: Any = FakePredictor()
    given: Any = evaluate(predictor, ({"text": name, "label": name, "image": object()} for name in "ab"))
    records, samples = given
    assert samples == [{"text": "a", "label": "a"}, {"text": "b", "label": "b"}]
    assert [record["label"] for record in records] == ["a", "b"]


@pytest.mark.parametrize(
    ("sample", "labelled"),
    [({"label": 0}, True), ({"labels": []}, True), ({"target": "x"}, True), ({"label": None}, False),
     ({"answer": "x", "score": 1, "entities": []}, False)],
)  # fmt: skip
def test_what_no_metric_reads_is_no_label(sample: dict[str, Any], labelled: bool) -> None:
    assert is_labelled(sample) is labelled


def test_texts_without_a_target_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePredictor.task, "needs_labels", False)
    predictor: Any = FakePredictor()
    given: Any = evaluate(predictor, [{"text": "two and two", "answer": "four"}])
    assert given[0] == [{"index": 0, "log_probability": -1.0}]
