from __future__ import annotations

import io
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from onnxkit.cli import records
from onnxkit.cli.console import Console

LABEL = {"index": 0, "label": "de", "score": 0.98765, "scores": [{"label": "de", "score": 0.98765}]}
SPAN = {"label": "PER", "score": 0.9, "text": "Ada", "start": 0, "end": 3}
CANDIDATE = {"token": "Paris", "token_id": 7, "score": 0.5, "text": "Paris it is."}
ANSWER = {"answer": "1843", "score": 0.7, "start": 4, "end": 8}


def shown(record: dict[str, Any], sample: str = "the sample") -> list[str]:
    out = io.StringIO()
    records.show(Console(out=out, err=io.StringIO()), [record], deque([sample]))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("record", "rows"),
    [
        (LABEL, ["the sample de 0.9877"]),
        (
            {**LABEL, "scores": [*LABEL["scores"], {"label": "nl", "score": 0.01}]},
            ["the sample de 0.9877 nl 0.0100"],
        ),
        ({**LABEL, "labels": ["a", "b"]}, ["the sample a, b 0.9877"]),
        ({**LABEL, "labels": []}, ["the sample (none) 0.9877"]),
        (
            {"entities": [SPAN, SPAN], "tokens": [SPAN]},
            ["the sample Ada PER 0.9000 0-3", "Ada PER 0.9000 0-3"],
        ),
        ({"entities": [], "tokens": [SPAN]}, ["the sample (none)"]),
        ({"tokens": [[CANDIDATE]], "text": "x"}, ["the sample Paris 0.5000 Paris it is."]),
        (
            {"tokens": [[CANDIDATE], [CANDIDATE]], "text": "x"},
            ["the sample 1: Paris 0.5000 Paris it is.", "2: Paris 0.5000 Paris it is."],
        ),
        (ANSWER, ["the sample 1843 0.7000 4-8"]),
        ({**ANSWER, "answer": ""}, ["the sample (no answer) 0.7000 4-8"]),
        ({**ANSWER, "answers": [ANSWER, ANSWER]}, ["the sample 1843 0.7000 4-8", "1843 0.7000 4-8"]),
        ({"embedding": [3.0, -4.0]}, ["the sample 2 5.000 +3.000 -4.000 …"]),
        ({"embeddings": [[1.0, 2.0, 3.0]] * 5}, ["the sample 5 3"]),
        ({"score": -0.25}, ["the sample -0.2500"]),
        ({"text": "what was heard", "duration_s": 1.5}, ["the sample what was heard"]),
        ({"text": "an\nanswer", "finish_reason": "stop", "new_tokens": 2}, ["the sample an ⏎ answer 2 stop"]),
        ({"new": 1}, ['the sample {"new": 1}']),
    ],
)
def test_every_kind_of_record_has_its_rows(record: dict[str, Any], rows: list[str]) -> None:
    assert shown(record)[1:] == rows


def test_nothing_is_shown_of_nothing() -> None:
    out = io.StringIO()
    records.show(Console(out=out, err=io.StringIO()), [], deque())
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ({"text": "hello"}, "hello"),
        ({"text": "a", "text_pair": "b"}, "a | b"),
        ({"question": "q", "context": "c"}, "q"),
        ({"image": Path("cat.png")}, "cat.png"),
        ({"text": "x" * 99}, "x" * (records.SAMPLE_WIDTH - 1) + "…"),
        ({"image": "/" + "d" * 99 + "/cat.png"}, "…" + ("d" * 99 + "/cat.png")[1 - records.SAMPLE_WIDTH :]),
        ({"audio": "/" + "d" * 99 + "/a.wav"}, "…" + ("d" * 99 + "/a.wav")[1 - records.SAMPLE_WIDTH :]),
        ({"x": 1}, ""),
    ],
)
def test_a_sample_is_told_by_its_beginning_and_an_image_by_its_end(sample: dict[str, Any], text: str) -> None:
    assert records.sample_text(sample) == text
