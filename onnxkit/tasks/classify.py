"""From logits to labels with scores, and how often they were right: texts, images and recordings alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from onnxkit.errors import UsageError
from onnxkit.inputs import Sample
from onnxkit.tasks.base import Array, Encoded, Metric, Record, Task, check_count
from onnxkit.tasks.labels import Labels, as_number, expected, label_id, labelled
from onnxkit.tasks.numerics import sigmoid, softmax
from onnxkit.tasks.statistics import macro_f1, spearman

Activation = Literal["softmax", "sigmoid", "none"]

_THRESHOLD = 0.5


class Classification(Task):
    """What a task that gives a label adds to one that reads its samples: the first of its two base classes.

    Attributes:
        classifier: what turns logits into labels; set by the task.
    """

    outputs: tuple[tuple[str, ...], ...] = (("logits",),)
    axes = 2
    classifier: Classifier

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn logits [rows, labels] into records."""
        return self.classifier.records(outputs[self.fetched[0]])

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Accuracy; F1 for multi-label; Spearman's rho for a single score."""
        return self.classifier.metric(records, samples)


class Classifier:
    """Turns logits into records, by what config.json says about the labels."""

    def __init__(self, config: Mapping[str, Any], *, top_k: int, activation: str | None) -> None:
        if activation not in (None, *get_args(Activation)):
            raise UsageError(f"no activation {activation!r}; choose softmax, sigmoid or none")
        check_count("--top-k", top_k)
        self.labels = Labels(config)
        self._problem = config.get("problem_type")
        self._chosen = activation
        self._top_k = top_k

    def records(self, logits: Array) -> list[Record]:
        """Return a record for each row of logits [rows, labels]."""
        scores = self._scores(logits)
        return [self._record(row) for row in scores]

    def activation(self, count: int) -> str:
        """Return what turns `count` logits into scores, as transformers' pipelines choose it."""
        if self._chosen:
            return self._chosen
        if self._problem == "regression":
            return "none"
        return "sigmoid" if self._multi_label or count == 1 else "softmax"

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Accuracy with macro F1; F1 of label sets for multi-label; Spearman's rho for one score."""
        pairs = labelled(records, samples)
        if not pairs:
            return None
        if self._multi_label:
            return self._set_metric(pairs)
        if len(records[0]["scores"]) == 1 and len(self.labels) < 2:
            return spearman(
                [record["score"] for record, _ in pairs],
                [as_number(expected(sample), sample) for _, sample in pairs],
            )
        found = [self.labels.id_of(record["label"]) for record, _ in pairs]
        true = [label_id(sample, self.labels) for _, sample in pairs]
        right = sum(one == other for one, other in zip(found, true, strict=True))
        details = {"macro_f1": macro_f1(found, true)}
        return Metric(name="accuracy", value=right / len(pairs), count=len(pairs), details=details)

    @property
    def _multi_label(self) -> bool:
        return self._problem == "multi_label_classification"

    def _scores(self, logits: Array) -> Array:
        kind = self.activation(logits.shape[-1])
        if kind == "softmax":
            return softmax(logits)
        return sigmoid(logits) if kind == "sigmoid" else logits

    def _record(self, scores: Array) -> Record:
        order = np.argsort(-scores, kind="stable")
        best = [{"label": self.labels.name(int(i)), "score": float(scores[i])} for i in order[: self._top_k]]
        record = {**best[0], "scores": best}
        if self._multi_label:
            record["labels"] = [self.labels.name(int(i)) for i in order if scores[i] >= _THRESHOLD]
        return record

    def _set_metric(self, pairs: Sequence[tuple[Record, Sample]]) -> Metric:
        hits = total = exact = 0
        for record, sample in pairs:
            value = expected(sample)
            true = {self.labels.id_of(one) for one in (value if isinstance(value, list | tuple) else [value])}
            found = {self.labels.id_of(name) for name in record["labels"]}
            hits, total, exact = (
                hits + len(true & found),
                total + len(true) + len(found),
                exact + (true == found),
            )
        details = {"exact_match": exact / len(pairs)}
        return Metric(name="f1", value=2 * hits / total if total else 1.0, count=len(pairs), details=details)
