"""What tasks that generate share: samples to prompts, and new tokens to texts and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample
from onnxkit.tasks.base import Array, Encoded, Metric, Record, Task
from onnxkit.tasks.detokenizer import StopStrings, TextStream, TokenStream, decoder_of
from onnxkit.tasks.labels import expected, labelled
from onnxkit.tasks.special_tokens import stop_token_ids
from onnxkit.tasks.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.artifact.manifest import Component


class Generated(Protocol):
    """One continuation, as the engine gives it."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The new ids, without the one that ended them."""

    @property
    def finish_reason(self) -> str:
        """Why it ended: "stop" or "length"."""

    @property
    def score(self) -> float | None:
        """Its log-probability, or a beam's score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a row asks of the decoder (the `extra` of its `Encoded`).

    Attributes:
        ids: int64 [n]: what is continued; the decoder's prefix where there is an encoder.
        options: generation options that this row insists on (`forced_bos_token_id`), by name.
        context: the last ids before the new ones where the new text follows a text (a prompt), so that a
            space between them is kept; empty where the new text stands by itself.
        stop_ids: tokens that end this row beside the model's own (a chat's end of turn).
        sample: what else the task wants to know again when the row is decoded.
        rule: rewrites raw logits: (new tokens int64 [n], float32 [vocabulary]) -> float32 [vocabulary].
        log_probabilities: whether the task wants to know how probable the new tokens are.
    """

    ids: Array
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    context: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    sample: Any = None
    rule: Callable[[Array, Array], Array] | None = None
    log_probabilities: bool = False


class GeneratingTask(Task):
    """A task whose model generates. Sub-classes give `encode` and `collate`.

    A row's `features` are the encoder's inputs without batch axis (empty for a decoder-only model), and
    its `extra` is a `Prompt`.

    Attributes:
        encodes: whether its models have an encoder, which reads the sample.
        setup: the tokenizer and its settings.
        generation: generation options that the model's configuration wants for this task, by name.
        stop_ids: tokens that end a sequence beside the model's own.
        stops: texts that end a sequence; they are cut off.
    """

    outputs = ()
    generates = True
    encodes: ClassVar[bool] = True
    generation: Mapping[str, Any]

    def __init__(self, model: ModelDir, *, stop: Sequence[str] = (), stop_token: Sequence[str] = ()) -> None:
        # Not Task's: an encoder-decoder has no single graph, and the engine fetches what it needs.
        self.model = model
        if ("encoder" in model.components) != self.encodes:
            needs, has = ("needs an", "none") if self.encodes else ("takes no", "one")
            said = f"{needs} encoder, and the model has {has}"
            raise InputError(f"{model.path}: {self.name} {said}; name the model's own task with --task")
        self.component = _fed(model)
        self.inputs = {spec.name: spec for spec in self.component.inputs}
        self.fetched = ()
        self.setup = load_tokenizer(model)
        if "" in stop:
            raise UsageError("--stop: the text is empty")
        self.stops = StopStrings(stop)
        self.stop_ids = stop_token_ids(self.setup, stop_token, where=str(model.path))
        self.generation = {}
        self._decode = decoder_of(self.setup)

    def next_row(self, row: Encoded, record: Record) -> Encoded | None:
        """Return the row that comes after `row` of the same sample, now that its record is known.

        None where there is none. `merge` joins the records of all rows of the sample.
        """
        return None

    def score_row(self, sample: Sample) -> Encoded:
        """Turn a sample into the row whose `extra.ids` are scored, without anything generated."""
        raise UsageError(f"--score does not apply: {self.name} gives no probability of a text")

    def text_of(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """Return the text of new tokens that follow `context`; special tokens are left out."""
        if not context:
            return self._decode(tokens)
        before = self._decode(context)
        whole = self._decode([*context, *tokens])
        return whole.removeprefix(before) if whole.startswith(before) else self._decode(tokens)

    def stream(self, row: Encoded) -> TextStream:
        """Return what turns a row's tokens into text as they come, without the stop strings."""
        return TextStream(TokenStream(self._decode, row.extra.context), self.stops)

    def stop_check(self, row: Encoded) -> Callable[[], TextStream] | None:
        """Return what makes a check for each sequence of a row, None where no text ends it."""
        return (lambda: self.stream(row)) if self.stops else None

    def decode_completion(self, sequences: Sequence[Generated], row: Encoded, prompt_tokens: int) -> Record:
        """Make the record of a row: its best continuation, and all where there are several."""
        made = [self.describe(one, row) for one in sequences]
        record = {**made[0], "prompt_tokens": prompt_tokens}
        return record if len(made) == 1 else {**record, "sequences": made}

    def describe(self, sequence: Generated, row: Encoded) -> Record:
        """Make the part of a record that is about one continuation."""
        text = self.stops.cut(self.text_of(sequence.tokens, row.extra.context))
        made = {"text": text, "finish_reason": sequence.finish_reason, "new_tokens": len(sequence.tokens)}
        return made if sequence.score is None else {**made, "score": sequence.score}

    def decode(self, outputs: Mapping[str, Array], rows: Sequence[Encoded]) -> list[Record]:
        """Nothing that a single run gives makes a record here."""
        raise InputError(f"{self.name}: records come of generated tokens, not of one run's outputs")

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Share of the texts that are exactly the sample's `target` (or one of a list of them)."""
        pairs = labelled(records, samples)
        if not pairs:
            return None
        right = sum(record["text"].strip() in _targets(sample) for record, sample in pairs)
        return Metric(name="exact_match", value=right / len(pairs), count=len(pairs))


def ids_array(ids: Sequence[int]) -> Array:
    """Return token ids as int64 [n]."""
    return np.array(ids, dtype=np.int64)


def _targets(sample: Sample) -> list[str]:
    value = expected(sample)
    return [str(one).strip() for one in (value if isinstance(value, list | tuple) else [value])]


def _fed(model: ModelDir) -> Component:
    """Return the component that samples are fed to: the encoder, or the only graph."""
    if "encoder" in model.components:
        return model.components["encoder"]
    if "model" in model.components:
        return model.components["model"]
    if len(model.components) == 1:
        return next(iter(model.components.values()))
    names = ", ".join(model.components)
    raise InputError(f"{model.path} holds {names}; generating needs an encoder and a decoder, or one model")
