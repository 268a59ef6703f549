"""Fill-mask: the likeliest tokens for every mask of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding

from onnxkit.errors import InputError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Array, Encoded, Metric, Record, check_count
from onnxkit.tasks.labels import expected, labelled
from onnxkit.tasks.numerics import softmax
from onnxkit.tasks.text import TextTask, own_tokens

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class FillMask(TextTask):
    """Records: `tokens`, for each mask a list of candidates; `text`, every mask filled with its best.

    A candidate has `token` (its text), `token_id`, `score` (softmax over the vocabulary) and `text`,
    the whole text with this mask filled. With several masks each is filled by itself, and the
    others stay masks, as in transformers' pipeline.
    """

    name = "fill-mask"
    outputs = (("logits", "prediction_logits"),)
    axes = 3

    def __init__(self, model: ModelDir, *, max_length: int | None = None, top_k: int = 5) -> None:
        super().__init__(model, max_length=max_length)
        check_count("--top-k", top_k)
        mask = self.setup.token_id("mask_token")
        if mask is None:
            raise InputError(
                f"{model.path}: the tokenizer has no mask token; tokenizer_config.json must name one"
            )
        self.mask_id = mask
        self._top_k = top_k

    def extra(self, encoding: Encoding, sample: Sample) -> Any:
        """Return the token ids; raises InputError for a text without a mask."""
        ids = np.array(encoding.ids)
        if self.mask_id not in ids:
            cut = " within the tokens that are read" if encoding.overflowing else ""
            mask = self.setup.specials["mask_token"]
            raise InputError(f"{place(sample)}: there is no {mask}{cut} in the text")
        return ids

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn logits [rows, tokens, vocabulary] into records."""
        logits = own_tokens(outputs[self.fetched[0]], rows, self.setup.padding_side)
        return [self._record(one, row.extra) for one, row in zip(logits, rows, strict=True)]

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Accuracy of the best candidates; a label is a token's text, or a list of one a mask."""
        right = total = 0
        for record, sample in labelled(records, samples):
            value = expected(sample)
            wanted = value if isinstance(value, list | tuple) else [value]
            if len(wanted) != len(record["tokens"]):
                raise InputError(f"{place(sample)}: {len(wanted)} labels for {len(record['tokens'])} masks")
            for candidates, token in zip(record["tokens"], wanted, strict=True):
                right += candidates[0]["token"].strip() == str(token).strip()
                total += 1
        return Metric(name="accuracy", value=right / total, count=total) if total else None

    def _record(self, logits: Array, ids: Array) -> Record:
        positions = np.flatnonzero(ids == self.mask_id)
        scores = softmax(logits[positions])
        single = len(positions) == 1
        candidates = [
            [
                self._candidate(ids, int(position), int(token), float(row[token]), single)
                for token in _best(row, self._top_k)
            ]
            for position, row in zip(positions, scores, strict=True)
        ]
        filled = ids.copy()
        filled[positions] = [one[0]["token_id"] for one in candidates]
        return {"tokens": candidates, "text": self._text(filled, skip=True)}

    def _candidate(self, ids: Array, position: int, token: int, score: float, single: bool) -> Record:
        filled = ids.copy()
        filled[position] = token
        decode = self.setup.tokenizer.decode
        return {
            "token": decode([token], skip_special_tokens=False),
            "token_id": token,
            "score": score,
            "text": self._text(filled, skip=single),
        }

    def _text(self, ids: Array, *, skip: bool) -> str:
        text: str = self.setup.tokenizer.decode(ids.tolist(), skip_special_tokens=skip)
        return text


def _best(scores: Array, count: int) -> Array:
    """Return the ids of the `count` best scores, best first."""
    count = min(count, len(scores))
    best = np.argpartition(-scores, count - 1)[:count]
    ordered: Array = best[np.argsort(-scores[best], kind="stable")]
    return ordered
