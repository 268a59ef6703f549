"""What all text tasks share: texts and pairs to token ids, padding, positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding

from onnxkit.artifact.configuration import position_offset
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample, place
from onnxkit.tasks.base import Array, Encoded, Feeds, Task, column_of
from onnxkit.tasks.tokenizer import length_limit, load_tokenizer

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir

Texts = str | tuple[str, str]

_SUPPLIED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class TextTask(Task):
    """A task on texts or pairs of texts. Sub-classes give `decode`, and `texts_of` where needed.

    Attributes:
        limit: tokens a text may have, None for no limit.
        setup: the tokenizer and its settings.
    """

    columns: tuple[str, ...] = ("text",)

    def __init__(self, model: ModelDir, *, max_length: int | None = None) -> None:
        super().__init__(model)
        self._check_inputs(_SUPPLIED)
        self.setup = load_tokenizer(model)
        self.limit = self._limit(max_length)
        self._position_offset = position_offset(model.config)
        self._set_truncation()

    def encode(self, sample: Sample) -> Encoded:
        """Tokenize one sample; the first row of several."""
        return self.rows([sample])[0][0]

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Tokenize samples together: one row each."""
        encodings = self.tokenize([self.texts_of(sample) for sample in samples])
        pairs = zip(encodings, samples, strict=True)
        return [[self.row(encoding, sample)] for encoding, sample in pairs]

    def texts_of(self, sample: Sample) -> Texts:
        """Return the text of a sample, or its pair; raises InputError where there is none."""
        text = text_column(sample, "text")
        if sample.get("text_pair") is None:
            return text
        return text, text_column(sample, "text_pair")

    def tokenize(self, texts: Sequence[Texts]) -> list[Encoding]:
        """Return one encoding a text or pair, cut at the limit, not padded."""
        return self.setup.tokenizer.encode_batch(list(texts))

    def row(self, encoding: Encoding, sample: Sample) -> Encoded:
        """Make a row of an encoding."""
        return Encoded(
            features=self.features(encoding),
            length=len(encoding),
            extra=self.extra(encoding, sample),
            truncated=bool(encoding.overflowing),
            where=place(sample),
        )

    def extra(self, encoding: Encoding, sample: Sample) -> Any:
        """Return what `decode` needs of an encoding beside the outputs."""
        return None

    def features(self, encoding: Encoding) -> dict[str, Array]:
        """Return the model's inputs for one encoding, int64 [length] each."""
        length = len(encoding)
        made: dict[str, Array] = {"input_ids": np.array(encoding.ids, dtype=np.int64)}
        if "attention_mask" in self.inputs:
            made["attention_mask"] = np.ones(length, dtype=np.int64)
        if "token_type_ids" in self.inputs:
            made["token_type_ids"] = np.array(encoding.type_ids, dtype=np.int64)
        if "position_ids" in self.inputs:
            made["position_ids"] = np.arange(length, dtype=np.int64) + self._position_offset
        return made

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Pad rows to the longest of them, at the tokenizer's side."""
        side = self.setup.padding_side
        width = self._fixed_length or max(max(row.length for row in rows), 1)
        fill = {"input_ids": self.setup.pad_id, "token_type_ids": self.setup.pad_type_id}
        fill["position_ids"] = max(self._position_offset - 1, 0)
        feeds = {}
        for name in rows[0].features:
            dtype = self.inputs[name].dtype
            feeds[name] = pad([row.features[name] for row in rows], width, fill.get(name, 0), side, dtype)
        return feeds

    def sample_of(self, item: Any) -> Sample:
        """Take a text, or a tuple of two: a pair, or question and context."""
        if isinstance(item, tuple):
            names = self.columns if len(self.columns) > 1 else ("text", "text_pair")
            return dict(zip(names, item, strict=False))
        return super().sample_of(item)

    @property
    def _fixed_length(self) -> int | None:
        """The tokens that the graph insists on, None where it takes any number."""
        shape = self.inputs["input_ids"].shape if "input_ids" in self.inputs else ()
        return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None

    def _limit(self, wanted: int | None) -> int | None:
        limit = length_limit(self.model, self.setup, wanted)
        if self._fixed_length:
            limit = min(limit or self._fixed_length, self._fixed_length)
        special = self.setup.tokenizer.num_special_tokens_to_add(is_pair=True)
        if wanted is not None and limit is not None and limit <= special:
            raise UsageError(f"--max-length {wanted} leaves no room beside {special} special tokens")
        return limit

    def _set_truncation(self) -> None:
        if self.limit is not None:
            self.setup.tokenizer.enable_truncation(self.limit, direction=self.setup.truncation_side)


def pad(rows: Sequence[Array], width: int, value: int, side: str, dtype: str) -> Array:
    """Stack rows [length] into [rows, width], filling with `value` at `side`."""
    stacked = np.full((len(rows), width), value, dtype=dtype)
    for target, row in zip(stacked, rows, strict=True):
        if side == "left":
            target[width - len(row) :] = row
        else:
            target[: len(row)] = row
    return stacked


def text_column(sample: Sample, column: str) -> str:
    """Return a sample's text in `column`.

    Raises:
        InputError: no such column, or no text in it; names the sample's place.
    """
    value = column_of(sample, column)
    if isinstance(value, str):
        return well_formed(value, f"{place(sample)}: {column!r}")
    raise InputError(f"{place(sample)}: {column!r} must be a text, not {type(value).__name__}")


def well_formed(text: str, what: str) -> str:
    """Return `text`, which a tokenizer takes only if it is Unicode throughout.

    Raises:
        InputError: a lone surrogate, which JSON's escapes and arguments that are not UTF-8 can bring.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is no Unicode text: character {error.start + 1} is half of a surrogate pair, or a byte "
            "that is not UTF-8"
        ) from error
    return text


def valid_positions(row: Encoded, width: int, side: str) -> slice:
    """Return where in a padded row of `width` its own tokens stand."""
    return slice(width - row.length, width) if side == "left" else slice(0, row.length)


def own_tokens(output: Array, rows: Sequence[Encoded], side: str) -> list[Array]:
    """Cut padding off: one [length, …] view a row of output [rows, width, …]."""
    return [output[index, valid_positions(row, output.shape[1], side)] for index, row in enumerate(rows)]
