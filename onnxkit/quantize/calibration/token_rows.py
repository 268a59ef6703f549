"""Samples as rows of tokens for a decoder: what it is run on, and what its encoder reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from onnxkit.errors import InputError
from onnxkit.generate.pipeline import Generator
from onnxkit.inputs import Sample, blamed
from onnxkit.progress import Progress
from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.random_data import random_feeds
from onnxkit.quantize.calibration.raw import DECODER_IDS
from onnxkit.runtime import RuntimeOptions
from onnxkit.tasks.base import Encoded
from onnxkit.tasks.batches import Remarks, located
from onnxkit.tasks.generating import GeneratingTask

Array = np.ndarray[Any, Any]

MOST_GENERATED = 64
"""New tokens, at most, of a sample whose answer nobody gives."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One sequence.

    Attributes:
        ids: int64 [n]: what the decoder is run on, n >= 1.
        features: the encoder's inputs without batch axis; empty for a decoder-only model.
        where: the place of the sample, for errors.
    """

    ids: Array
    features: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    where: str


def token_rows(data: DataSet, runtime: RuntimeOptions, progress: Progress) -> Iterator[tuple[int, TokenRow]]:
    """Yield (number of the sample from 1, row) in order.

    A text is run on as it stands, chats through the chat template. An encoder-decoder is run on the
    sample's `target`; where there is none, on what it generates itself, greedily.

    Raises:
        InputError: a sample that the task cannot read; a set of nothing but single tokens.
    """
    encodes = "encoder" in data.model.components
    if data.task is None:
        for number, sample in enumerate(data.samples, 1):
            feeds = random_feeds(data.model, sample) if data.random else sample
            yield number, _raw_row(feeds, encodes, data.place(number))
        return
    if not isinstance(data.task, GeneratingTask):
        raise InputError(f"{data.model.path}: {data.task.name} is no task of a model that generates")
    rows = _Rows(data, data.task, runtime)
    remarks = Remarks()
    count = 0
    for sample in located(data.task, data.samples):
        row = rows.row(sample)
        remarks.count([[row]] if row is not None else [])
        if row is None:  # a single token: nothing follows it
            continue
        count += 1
        yield count, TokenRow(ids=row.extra.ids, features=row.features, where=row.where)
    if not count:
        raise InputError(f"{data.source}: no text of two tokens or more")
    remarks.warn(progress, data.task)


class _Rows:
    """Turns samples into the rows that are scored, with the model's own answer where there is none."""

    def __init__(self, data: DataSet, task: GeneratingTask, runtime: RuntimeOptions) -> None:
        self._data, self._task, self._runtime = data, task, runtime
        self._encodes = "encoder" in data.model.components

    def row(self, sample: Sample) -> Encoded | None:
        """The row; None for a text of a single token."""
        if self._encodes and (sample.get("target") is None or _unscored(self._task)):
            return self._answered(sample)
        if not self._encodes and self._single_token(sample):
            return None
        return self._task.score_row(sample)

    def _single_token(self, sample: Sample) -> bool:
        text = sample.get("prompt", sample.get("text"))
        return isinstance(text, str) and len(self._task.setup.tokenizer.encode(text).ids) < 2

    def _answered(self, sample: Sample) -> Encoded:
        """A row followed by the tokens that the model generates."""
        [[row, *_]] = self._task.rows([sample])
        request = self._generator.request(row)
        options = dataclasses.replace(request.options, max_new_tokens=self._limit(len(request.prompt)))
        with blamed(row.where):
            [(_, completion)] = self._generator.engine.generate(
                [dataclasses.replace(request, options=options)]
            )
        ids = np.concatenate([row.extra.ids, np.array(completion.sequences[0].tokens, np.int64)])
        return dataclasses.replace(row, extra=dataclasses.replace(row.extra, ids=ids))

    def _limit(self, prompt: int) -> int:
        """How many tokens are generated at most: few, and what the context has room for."""
        context = self._generator.engine.limit
        room = context - prompt if context is not None else MOST_GENERATED
        return min(MOST_GENERATED, room, self._data.max_length or MOST_GENERATED)

    @cached_property
    def _generator(self) -> Generator:
        return Generator(
            self._data.model, self._task, runtime=self._runtime, batch_size=1, num_beams=1, do_sample=False
        )


def _unscored(task: GeneratingTask) -> bool:
    """Whether the task has no text to score (speech)."""
    return type(task).score_row is GeneratingTask.score_row


def _raw_row(feeds: Mapping[str, Array], encodes: bool, where: str) -> TokenRow:
    """Tensors of one row: ids that the mask keeps; with an encoder its inputs and the decoder's ids."""
    if encodes and DECODER_IDS in feeds:
        features = {name: array[0] for name, array in feeds.items() if name != DECODER_IDS}
        return TokenRow(ids=feeds[DECODER_IDS][0].astype(np.int64), features=features, where=where)
    if encodes:
        raise InputError(
            f"{where}: tensors for the decoder are missing: add {DECODER_IDS} (int64, a row a sample)"
        )
    ids, mask = feeds["input_ids"][0], feeds.get("attention_mask")
    kept = (ids if mask is None else ids[mask[0] > 0]).astype(np.int64)
    if not len(kept):
        raise InputError(f"{where}: the attention mask leaves no token of the row")
    return TokenRow(ids=kept, where=where)
