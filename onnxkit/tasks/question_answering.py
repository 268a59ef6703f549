"""Question answering: the span of a context that answers a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Array, Encoded, Metric, Record, check_count
from onnxkit.tasks.labels import expected, labelled
from onnxkit.tasks.numerics import softmax
from onnxkit.tasks.squad import normalized, token_f1
from onnxkit.tasks.text import Texts, TextTask, own_tokens, text_column

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

_WINDOW_TOKENS = 384
_STRIDE_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class _Window:
    """What decoding needs of one window of a context."""

    encoding: Encoding
    context: str
    sequence: int
    candidates: Array


class QuestionAnswering(TextTask):
    """Records: `answer`, `score`, `start`, `end` (characters of the context); `answers` when `top_k` > 1.

    A context that is longer than the model takes is read in windows that overlap by `stride`
    tokens, and the best span of all wins. Spans are scored and grown to whole words as
    transformers' pipeline did (4.x, select_starts_ends): the product of two softmaxes over the
    window's tokens. With `null_answers` the empty answer competes, with the score of the first token.
    """

    name = "question-answering"
    columns = ("question", "context")
    outputs = (("start_logits",), ("end_logits",))
    axes = 2
    window = 128

    def __init__(
        self,
        model: ModelDir,
        *,
        max_length: int | None = None,
        top_k: int = 1,
        stride: int | None = None,
        max_answer_length: int = 15,
        null_answers: bool = False,
    ) -> None:
        self._asked_stride = stride
        super().__init__(model, max_length=max_length)
        check_count("--top-k", top_k)
        check_count("--max-answer-length", max_answer_length)
        self._top_k = top_k
        self._longest = max_answer_length
        self._null_answers = null_answers

    def texts_of(self, sample: Sample) -> Texts:
        """Return question and context, in the order that the tokenizer's padding side asks for."""
        question, context = text_column(sample, "question"), text_column(sample, "context")
        return (question, context) if self._question_first else (context, question)

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Tokenize samples: one row a window of the context."""
        encodings = self.tokenize([self.texts_of(sample) for sample in samples])
        return [
            [self._row(window, sample) for window in self._windows(encoding, sample)]
            for encoding, sample in zip(encodings, samples, strict=True)
        ]

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn start and end logits [rows, tokens] into the candidates of each window."""
        starts, ends = (own_tokens(outputs[name], rows, self.setup.padding_side) for name in self.fetched)
        return [self._spans(*one) for one in zip(starts, ends, rows, strict=True)]

    def merge(self, records: Sequence[Record]) -> Record:
        """Choose the best answers of all windows; equal texts of several windows add up."""
        answers: dict[str, Record] = {}
        for candidate in (one for record in records for one in record["spans"]):
            known = answers.get(candidate["answer"].lower())
            if known is None:
                answers[candidate["answer"].lower()] = candidate
            else:
                known["score"] += candidate["score"]
        found = list(answers.values())
        if self._null_answers:
            null = min(record["null_score"] for record in records)
            found.append({"answer": "", "score": null, "start": 0, "end": 0})
        found.sort(key=lambda one: -one["score"])
        best = found[0] if found else {"answer": "", "score": 0.0, "start": 0, "end": 0}
        return dict(best) if self._top_k == 1 else {**best, "answers": found[: self._top_k]}

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Exact match and F1 of SQuAD; a label is an answer, or a list of acceptable ones."""
        pairs = [(record["answer"], _answers(sample)) for record, sample in labelled(records, samples)]
        if not pairs:
            return None
        exact = [max(normalized(found) == normalized(one) for one in right) for found, right in pairs]
        overlap = [max(token_f1(found, one) for one in right) for found, right in pairs]
        details = {"f1": float(np.mean(overlap))}
        return Metric(name="exact_match", value=float(np.mean(exact)), count=len(pairs), details=details)

    @property
    def _question_first(self) -> bool:
        return self.setup.padding_side == "right"

    @property
    def _context(self) -> int:
        """Which sequence of a pair is the context."""
        return 1 if self._question_first else 0

    def _limit(self, wanted: int | None) -> int | None:
        limit = super()._limit(wanted)
        return limit if wanted is not None else min(limit or _WINDOW_TOKENS, _WINDOW_TOKENS)

    def _set_truncation(self) -> None:
        """Leave the tokenizer without a limit: whether a text needs windows is seen from its tokens."""
        if not 0 <= self._stride < self._width:
            raise UsageError(
                f"the stride must be less than the {self._width} tokens of a window, not {self._stride}"
            )

    @property
    def _width(self) -> int:
        return self.limit or _WINDOW_TOKENS

    @property
    def _stride(self) -> int:
        return min(self._width // 2, _STRIDE_TOKENS) if self._asked_stride is None else self._asked_stride

    @cached_property
    def _windowing(self) -> Tokenizer:
        """A copy of the tokenizer that cuts contexts into windows."""
        copy: Tokenizer = Tokenizer.from_str(self.setup.tokenizer.to_str())
        strategy = "only_second" if self._question_first else "only_first"
        copy.enable_truncation(self._width, stride=self._stride, strategy=strategy)
        return copy

    def _windows(self, encoding: Encoding, sample: Sample) -> list[Encoding]:
        if len(encoding) <= self._width:
            return [encoding]
        others = len(encoding) - encoding.sequence_ids.count(self._context)
        if self._width - others <= self._stride:  # the tokenizers library would panic
            raise InputError(
                f"{place(sample)}: the question is too long: with special tokens it takes {others} of the "
                f"{self._width} tokens of a window, of which {self._stride} overlap (--stride, --max-length)"
            )
        first = self._windowing.encode(*self.texts_of(sample))
        return [first, *first.overflowing]

    def _row(self, encoding: Encoding, sample: Sample) -> Encoded:
        sequence = self._context
        candidates = np.array([one == sequence for one in encoding.sequence_ids])
        candidates &= np.array(encoding.special_tokens_mask) == 0
        extra = _Window(encoding, text_column(sample, "context"), sequence, candidates)
        return Encoded(
            features=self.features(encoding), length=len(encoding), extra=extra, where=place(sample)
        )

    def _spans(self, start: Array, end: Array, row: Encoded) -> Record:
        window: _Window = row.extra
        eligible = window.candidates.copy()
        first = self.setup.token_id("cls_token")
        if first is not None:  # the null answer's token takes part in the softmax, and never in a span
            eligible |= np.array(window.encoding.ids) == first
        start, end = (
            softmax(np.where(eligible, logits, -10000.0).astype(np.float32)) for logits in (start, end)
        )
        null = float(start[0] * end[0])
        start, end = np.where(window.candidates, start, 0), np.where(window.candidates, end, 0)
        return {"null_score": null, "spans": self._best_spans(start, end, window)}

    def _best_spans(self, start: Array, end: Array, window: _Window) -> list[Record]:
        products = np.tril(np.triu(np.outer(start, end)), self._longest - 1)
        flat = products.ravel()
        count = min(self._top_k, len(flat))
        best = np.argpartition(-flat, count - 1)[:count]
        spans = []
        for position in best[np.argsort(-flat[best], kind="stable")]:
            first, last = divmod(int(position), len(end))
            if window.candidates[first] and window.candidates[last]:
                spans.append(_span(window, first, last, float(flat[position])))
        return spans


def _span(window: _Window, first: int, last: int, score: float) -> Record:
    """Return the answer from token `first` to `last`, grown to whole words."""
    encoding = window.encoding
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    if words[0] is not None and words[1] is not None:
        begins = encoding.word_to_chars(words[0], window.sequence)
        ends = encoding.word_to_chars(words[1], window.sequence)
        start, end = begins[0] if begins else start, ends[1] if ends else end
    return {"answer": window.context[start:end], "score": score, "start": start, "end": end}


def _answers(sample: Sample) -> list[str]:
    value = expected(sample)
    if isinstance(value, Mapping):  # the "answers" of SQuAD
        value = value.get("text", [])
    answers = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
    return answers or [""]
