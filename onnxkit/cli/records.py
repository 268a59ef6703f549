"""How `onnxkit run` shows records to people: one layout for each kind of record."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxkit.cli import figures
from onnxkit.cli.console import Column, Console
from onnxkit.report import to_plain

Record = Mapping[str, Any]
Row = Sequence[str]
SAMPLE_WIDTH = 40
SAMPLE_COLUMNS = ("text", "text_pair", "question", "prompt", "image", "audio")

_SAMPLE = Column("input")
_SCORE = Column("score", number=True)


@dataclass(frozen=True)
class Layout:
    """The columns of a table of records, and the rows that a record makes of its sample's text."""

    columns: tuple[Column, ...]
    rows: Callable[[str, Record], Iterable[Row]]


def score(value: float | None) -> str:
    """Write a score with four decimals."""
    return "-" if value is None else f"{value:.4f}"


def _labelled(sample: str, record: Record) -> list[Row]:
    others = [f"{one['label']} {score(one['score'])}" for one in record.get("scores", ())[1:2]]
    label = ", ".join(record["labels"]) or "(none)" if "labels" in record else str(record["label"])
    return [(sample, label, score(record["score"]), ", ".join(others))]


def _answered(sample: str, record: Record) -> list[Row]:
    answers = record.get("answers", [record])
    return [
        (
            "" if rank else sample,
            str(one["answer"]) or "(no answer)",
            score(one["score"]),
            f"{one['start']}-{one['end']}",
        )
        for rank, one in enumerate(answers)
    ]


def _spans(key: str) -> Callable[[str, Record], list[Row]]:
    def rows(sample: str, record: Record) -> list[Row]:
        found = [
            (
                str(span.get("text", "")),
                str(span.get("label", "")),
                score(span.get("score")),
                f"{span.get('start')}-{span.get('end')}",
            )
            for span in record[key]
        ]
        samples = itertools.chain([sample], itertools.repeat(""))
        return [(name, *row) for name, row in zip(samples, found or [("(none)", "", "", "")], strict=False)]

    return rows


def _filled(sample: str, record: Record) -> list[Row]:
    several = len(record["tokens"]) > 1
    return [
        (
            "" if mask or rank else sample,
            f"{mask + 1}: {one['token']}" if several else str(one["token"]),
            score(one["score"]),
            str(one["text"]),
        )
        for mask, choices in enumerate(record["tokens"])
        for rank, one in enumerate(choices)
    ]


def _embedded(sample: str, record: Record) -> list[Row]:
    vector = record["embedding"]
    norm = math.sqrt(sum(value * value for value in vector))
    start = " ".join(f"{value:+.3f}" for value in vector[:3])
    return [(sample, str(len(vector)), f"{norm:.3f}", f"{start} …")]


def _many_embedded(sample: str, record: Record) -> list[Row]:
    vectors = record["embeddings"]
    return [(sample, str(len(vectors)), str(len(vectors[0]) if vectors else 0))]


def _scored(sample: str, record: Record) -> list[Row]:
    return [(sample, score(record["score"]))]


def _timed(sample: str, record: Record) -> list[Row]:
    samples = itertools.chain([sample], itertools.repeat(""))
    found = [(f"{one['start_s']:.2f}-{one['end_s']:.2f}", str(one["text"])) for one in record["segments"]]
    return [(name, *row) for name, row in zip(samples, found or [("", "(none)")], strict=False)]


def _generated(sample: str, record: Record) -> list[Row]:
    return [
        (
            "" if rank else sample,
            str(one["text"]).replace("\n", " ⏎ "),
            str(one["new_tokens"]),
            str(one["finish_reason"]),
        )
        for rank, one in enumerate(record.get("sequences", [record]))
    ]


def _heard(sample: str, record: Record) -> list[Row]:
    return [(sample, str(record["text"]))]


def _anything(sample: str, record: Record) -> list[Row]:
    fields = {key: value for key, value in record.items() if key != "index"}
    return [(sample, json.dumps(to_plain(fields), ensure_ascii=False))]


_SPAN_COLUMNS = (_SAMPLE, Column("text"), Column("label"), _SCORE, Column("characters", number=True))
# The first key that a record has chooses its layout.
LAYOUTS: dict[str, Layout] = {
    "entities": Layout(_SPAN_COLUMNS, _spans("entities")),
    "tokens": Layout((_SAMPLE, Column("token"), _SCORE, Column("text", wide=True)), _filled),
    "answer": Layout((_SAMPLE, Column("answer", wide=True), _SCORE, Column("characters")), _answered),
    "label": Layout((_SAMPLE, Column("label"), _SCORE, Column("next", wide=True)), _labelled),
    "embedding": Layout(
        (_SAMPLE, Column("values", number=True), Column("norm", number=True), Column("begins")), _embedded
    ),
    "embeddings": Layout(
        (_SAMPLE, Column("vectors", number=True), Column("values", number=True)), _many_embedded
    ),
    "segments": Layout((_SAMPLE, Column("seconds", number=True), Column("text", wide=True)), _timed),
    "new_tokens": Layout(
        (_SAMPLE, Column("text", wide=True), Column("new tokens", number=True), Column("end")), _generated
    ),
    "text": Layout((_SAMPLE, Column("text", wide=True)), _heard),
    "score": Layout((_SAMPLE, _SCORE), _scored),
}
_FALLBACK = Layout((_SAMPLE, Column("record", wide=True)), _anything)


def layout_of(record: Record) -> Layout:
    """Choose the layout of a record by the fields that it has."""
    return next((layout for key, layout in LAYOUTS.items() if key in record), _FALLBACK)


def sample_text(sample: Mapping[str, Any]) -> str:
    """Return what identifies a sample, in at most SAMPLE_WIDTH characters."""
    parts = [str(sample[column]) for column in SAMPLE_COLUMNS if sample.get(column) is not None]
    messages = sample.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        parts.append(str(messages[-1].get("content", "")))
    text = " | ".join(parts)
    if len(text) <= SAMPLE_WIDTH:
        return text
    if sample.keys() & {"image", "audio"}:  # the end of a path tells more
        return f"…{text[1 - SAMPLE_WIDTH :]}"
    return f"{text[: SAMPLE_WIDTH - 1]}…"


def show(console: Console, stream: Iterable[Record], shown: Any) -> None:
    """Print records as a table, as they come.

    Args:
        console: where to.
        stream: the records.
        shown: a deque of the samples' texts, filled in the order of the records.
    """
    records = iter(stream)
    first = next(records, None)
    if first is None:
        return
    layout = layout_of(first)
    every = itertools.chain([first], records)
    rows: Iterator[Row] = itertools.chain.from_iterable(
        layout.rows(shown.popleft() if shown else figures.plural(1, "sample"), record) for record in every
    )
    console.records(layout.columns, rows)


def remember(samples: Iterable[Any], shown: deque[str]) -> Iterator[Any]:
    """Keep the text of each sample until its record is printed beside it."""
    for sample in samples:
        shown.append(sample_text(sample))
        yield sample


def tracked(
    console: Console, stream: Iterator[dict[str, Any]], *, total: int | None, text: str
) -> Iterator[dict[str, Any]]:
    """Show progress, unless records go to the same terminal: a bar and a table would mix."""
    if console.out.isatty() and not console.json:
        return stream
    return console.track(stream, total=total, text=text)


def print_all(
    console: Console,
    stream: Iterator[dict[str, Any]],
    shown: deque[str],
    subtitles: str | None,
    *,
    jsonl: bool,
) -> None:
    """Print records in the user's mode, as they come where that is possible."""
    if console.json:
        console.document("run", list(stream))
    elif jsonl:
        for record in stream:
            console.record(record)
    elif subtitles is not None:
        for record in stream:
            show_answer(console, record, subtitles)
    else:
        show(console, stream, shown)


def show_answer(console: Console, record: Record, subtitles: str | None = None) -> None:
    """Print the text of one answer, all of its sequences where there are several."""
    if subtitles is not None:
        from onnxkit.cli.subtitles import subtitles as written

        console.prose(written(record, subtitles), end="")
    elif "segments" in record:
        from onnxkit.cli.subtitles import lines

        console.prose(lines(record), end="")
    elif "sequences" not in record:
        console.prose(record["text"])
    else:
        for number, one in enumerate(record["sequences"], 1):
            console.heading(f"{number} of {len(record['sequences'])}")
            console.prose(one["text"])
