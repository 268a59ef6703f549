"""How well predicted tokens and entities agree with labelled words or spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxkit.errors import InputError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Metric, Record
from onnxkit.tasks.entities import split_prefix
from onnxkit.tasks.labels import Labels, expected, labelled

Span = tuple[str, int, int]


def entity_metric(records: Sequence[Record], samples: Sequence[Sample], labels: Labels) -> Metric | None:
    """Compare records with labels, in one of two forms.

    A label a word (names or ids; words of a text are separated by white space): the accuracy of
    words, where a word has the label of its first token; and the F1 of entities. Labelled spans
    ({"label", "start", "end"}): the F1 of entities, of which type and both ends must agree.
    """
    pairs = labelled(records, samples)
    if not pairs:
        return None
    right = words = hits = total = 0
    for record, sample in pairs:
        value = expected(sample)
        if _is_spans(value):
            true = {(str(one["label"]), int(one["start"]), int(one["end"])) for one in value}
            found = {(one["label"], one["start"], one["end"]) for one in record["entities"]}
        else:
            names, predicted = _word_labels(record, sample, labels)
            right += sum(one == other for one, other in zip(names, predicted, strict=True))
            words += len(names)
            true, found = _spans_of(names), _spans_of(predicted)
        hits, total = hits + len(true & found), total + len(true) + len(found)
    f1 = 2 * hits / total if total else 1.0
    if not words:
        return Metric(name="entity_f1", value=f1, count=len(pairs))
    return Metric(name="accuracy", value=right / words, count=words, details={"entity_f1": f1})


def joined(words: Sequence[Any]) -> str:
    """Join words into a text."""
    return " ".join(map(str, words))


def _is_spans(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value)


def _word_labels(record: Record, sample: Sample, labels: Labels) -> tuple[list[str], list[str]]:
    """Return what each word's label should be, and what it was said to be."""
    text, value = sample["text"], expected(sample)
    words = [str(one) for one in text] if isinstance(text, list) else str(text).split()
    source = joined(words) if isinstance(text, list) else str(text)
    if not isinstance(value, list | tuple) or len(value) != len(words):
        count = len(value) if isinstance(value, list | tuple) else 1
        raise InputError(f"{place(sample)}: {count} labels for {len(words)} words")
    ids = [labels.id_of(one) for one in value]
    if None in ids:
        raise InputError(f"{place(sample)}: {value[ids.index(None)]!r} is no label of the model")
    names = [labels.name(index) for index in ids if index is not None]
    return names, [_label_at(record, start, end) for start, end in _places(words, source)]


def _label_at(record: Record, start: int, end: int) -> str:
    return next((one["label"] for one in record["tokens"] if start <= one["start"] < end), "O")


def _places(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    places, at = [], 0
    for word in words:
        start = text.index(word, at)
        at = start + len(word)
        places.append((start, at))
    return places


def _spans_of(names: Sequence[str]) -> set[Span]:
    """Return the entities of a sequence of labels: (type, first word, last word)."""
    spans: set[Span] = set()
    kind, start = "O", 0
    for index, name in enumerate([*names, "O"]):
        prefix, here = split_prefix(name)
        if here != kind or prefix == "B":
            if kind != "O":
                spans.add((kind, start, index - 1))
            kind, start = here, index
    return spans
