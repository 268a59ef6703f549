"""Token classification: a label a token, and the entities that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding

from onnxkit.errors import UsageError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Array, Encoded, Metric, Record
from onnxkit.tasks.entities import (
    STRATEGIES,
    Tagged,
    Token,
    aggregate,
    tag_tokens,
    without_overlaps,
)
from onnxkit.tasks.entity_metric import entity_metric, joined
from onnxkit.tasks.labels import Labels
from onnxkit.tasks.numerics import softmax
from onnxkit.tasks.text import Texts, TextTask, own_tokens, text_column, well_formed

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


@dataclasses.dataclass(frozen=True)
class _Window:
    """What decoding needs of one window of a text."""

    encoding: Encoding
    text: str


class TokenClassification(TextTask):
    """Records: `entities` and `tokens`, each with `label`, `score`, `text`, `start`, `end` (characters).

    `entities` are made by `aggregation`, as transformers' pipeline makes them: none, simple, first,
    average or max. With `stride`, a long text is read in windows that overlap by so many tokens;
    without, it is cut. `text` may be a list of words; they are joined by spaces.
    """

    name = "token-classification"
    outputs = (("logits",),)
    axes = 3

    def __init__(
        self,
        model: ModelDir,
        *,
        max_length: int | None = None,
        aggregation: str = "simple",
        stride: int | None = None,
    ) -> None:
        if aggregation not in STRATEGIES:
            raise UsageError(f"no aggregation {aggregation!r}; choose one of {', '.join(STRATEGIES)}")
        self._stride = stride
        super().__init__(model, max_length=max_length)
        self._strategy = aggregation
        self._labels = Labels(model.config)
        self._unknown = self.setup.token_id("unk_token")
        self._has_words = bool(getattr(self.setup.tokenizer.model, "continuing_subword_prefix", None))

    def texts_of(self, sample: Sample) -> Texts:
        """Return the text; words are joined by spaces."""
        if isinstance(sample.get("text"), list):
            return well_formed(joined(sample["text"]), f"{place(sample)}: 'text'")
        return text_column(sample, "text")

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Tokenize samples: one row each, with `stride` one a window."""
        encodings = self.tokenize([self.texts_of(sample) for sample in samples])
        if self._stride is None:
            return [[self.row(one, sample)] for one, sample in zip(encodings, samples, strict=True)]
        return [
            [
                dataclasses.replace(self.row(window, sample), truncated=False)
                for window in (one, *one.overflowing)
            ]
            for one, sample in zip(encodings, samples, strict=True)
        ]

    def extra(self, encoding: Encoding, sample: Sample) -> Any:
        """Return the encoding with its text."""
        return _Window(encoding, str(self.texts_of(sample)))

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Turn logits [rows, tokens, labels] into the tokens and entities of each window."""
        logits = own_tokens(outputs[self.fetched[0]], rows, self.setup.padding_side)
        return [self._window_record(softmax(one), row.extra) for one, row in zip(logits, rows, strict=True)]

    def merge(self, records: Sequence[Record]) -> Record:
        """Join windows; where entities overlap the longest stays, then the surest."""
        text: str = records[0]["source"]
        entities, tokens = records[0]["entities"], records[0]["tokens"]
        if len(records) > 1:
            entities = without_overlaps([one for record in records for one in record["entities"]])
            tokens = without_overlaps([one for record in records for one in record["tokens"]])
        return {
            "entities": [entity.record(text) for entity in entities],
            "tokens": [token.record(text) for token in tokens],
        }

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """F1 of entities, or the accuracy of words: see `entity_metric`."""
        return entity_metric(records, samples, self._labels)

    def _set_truncation(self) -> None:
        if self._stride is None or self.limit is None:
            return super()._set_truncation()
        special = self.setup.tokenizer.num_special_tokens_to_add(is_pair=False)
        if not 0 <= self._stride < self.limit - special:
            raise UsageError(f"the stride must be less than the {self.limit - special} tokens of a window")
        self.setup.tokenizer.enable_truncation(self.limit, stride=self._stride)
        return None

    def _window_record(self, scores: Array, window: _Window) -> Record:
        tokens = self._tokens(scores, window)
        tagged: list[Tagged] = tag_tokens(tokens, self._labels)
        entities = aggregate(tokens, self._labels, self._strategy)
        return {"source": window.text, "entities": entities, "tokens": tagged}

    def _tokens(self, scores: Array, window: _Window) -> list[Token]:
        """Return the tokens that are not special, with what tells whether they continue a word."""
        encoding, tokens = window.encoding, []
        parts = zip(
            encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
        )
        for index, (token_id, token, (start, end), special) in enumerate(parts):
            if not special:
                continues = token_id != self._unknown and self._continues(token, window.text, start, end)
                tokens.append(Token(scores[index], start, end, continues))
        return tokens

    def _continues(self, token: str, text: str, start: int, end: int) -> bool:
        """Tell a word's later token as transformers does: by its marker, else by the space before it."""
        if self._has_words:
            return len(token) != end - start
        return start > 0 and " " not in text[start - 1 : start + 1]
