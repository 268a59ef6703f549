"""Text to text: an encoder reads, a decoder writes. Also the base of translation and summarization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Sample, place
from onnxkit.safety import read_json
from onnxkit.tasks.base import Array, Encoded, Feeds, Metric, Record
from onnxkit.tasks.generating import GeneratingTask, Prompt, ids_array
from onnxkit.tasks.languages import Languages, TaskParameters, languages_of
from onnxkit.tasks.perplexity import perplexity
from onnxkit.tasks.text import pad, text_column
from onnxkit.tasks.tokenizer import length_limit

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir


class Text2TextGeneration(GeneratingTask):
    """Records: `text`, `finish_reason`, `new_tokens`, `prompt_tokens` (read by the encoder), `score`.

    Texts longer than the model takes are cut, and that is said. `prefix` stands before every text;
    with languages the model is told them its own way: a prefix, tokens beside the text, the decoder's
    first token.
    """

    name = "text2text-generation"
    columns = ("text",)
    languages_needed = False

    def __init__(
        self,
        model: ModelDir,
        *,
        stop: Sequence[str] = (),
        stop_token: Sequence[str] = (),
        prefix: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> None:
        super().__init__(model, stop=stop, stop_token=stop_token)
        self.limit = length_limit(model, self.setup)
        self._start = decoder_start(model)
        self._parameters = TaskParameters.of(model.config)
        self._prefix = prefix
        self._use_languages(source_lang, target_lang)
        if prefix is not None and self._told.prefix:
            raise UsageError("--prefix does not apply: the languages are told by a prefix of the model's own")
        if self.limit is not None:
            self.setup.tokenizer.enable_truncation(self.limit, direction=self.setup.truncation_side)

    def encode(self, sample: Sample) -> Encoded:
        """Tokenize one sample.

        Raises:
            InputError: there is no text.
        """
        return self.rows([sample])[0][0]

    def rows(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Tokenize samples together: one row each."""
        texts = [self._with_prefix(text_column(sample, "text"), place(sample)) for sample in samples]
        encodings = self.setup.tokenizer.encode_batch(texts)
        return [[self._row(encoding, sample)] for encoding, sample in zip(encodings, samples, strict=True)]

    def score_row(self, sample: Sample) -> Encoded:
        """Turn a sample's text and target into the decoder's ids whose probability is asked for.

        Raises:
            InputError: there is no `target`.
        """
        row = self.encode(sample)
        # The target as the model learnt it: its own special tokens, but none of the source language.
        ids = self.setup.tokenizer.encode(text_column(sample, "target"), add_special_tokens=False).ids
        end = self.setup.token_id("eos_token")
        forced = self._told.first
        labels = [*([] if forced is None else [forced]), *ids, *([] if end is None else [end])]
        prompt = Prompt(ids=ids_array([*self._start_ids, *labels]))
        return Encoded(
            features=row.features, length=row.length, extra=prompt, truncated=row.truncated, where=row.where
        )

    def collate(self, rows: Sequence[Encoded]) -> Feeds:
        """Pad rows to the longest of them: the encoder's inputs."""
        side = self.setup.padding_side
        width = max(max(row.length for row in rows), 1)
        fill = {"input_ids": self.setup.pad_id}
        return {
            name: pad(
                [row.features[name] for row in rows], width, fill.get(name, 0), side, self.inputs[name].dtype
            )
            for name in rows[0].features
        }

    def metric(self, records: Sequence[Record], samples: Sequence[Sample]) -> Metric | None:
        """Exact match of `target`s; of scored ones the perplexity."""
        if records and "log_probability" in records[0]:
            return perplexity(records)
        return super().metric(records, samples)

    def choose_parameters(self, told: Languages) -> Mapping[str, Any]:
        """Return what config.json's task_specific_params say for these languages."""
        return told.parameters

    def _use_languages(self, source: str | None, target: str | None) -> None:
        self._told = languages_of(
            self.model,
            self.setup,
            self._parameters,
            source=source,
            target=target,
            needed=self.languages_needed,
        )
        if self._told.template is not None:
            self.setup.tokenizer.post_processor = self._told.template
        chosen = dict(self.choose_parameters(self._told))
        chosen.pop("prefix", None)
        self._start_ids = [self._told.start if self._told.start is not None else self._start]
        if self._told.first is not None:
            chosen["forced_bos_token_id"] = self._told.first
        self.generation = chosen

    def _with_prefix(self, text: str, where: str) -> str:
        prefix = self._told.prefix if self._prefix is None else self._prefix
        known = self._parameters.pairs()
        if not prefix and known and self.languages_needed:
            prefixes = [self._parameters.prefix(task) for task in known.values()]
            if not text.startswith(tuple(prefixes)):
                raise InputError(
                    f"{where}: the model is not told what to translate from and to: give --source-lang and "
                    f"--target-lang, or a text such as {prefixes[0] + 'one'!r}"
                )
        return text if text.startswith(prefix) else prefix + text

    def _row(self, encoding: Encoding, sample: Sample) -> Encoded:
        features: dict[str, Array] = {"input_ids": ids_array(encoding.ids)}
        if "attention_mask" in self.inputs:
            features["attention_mask"] = np.ones(len(encoding), dtype=np.int64)
        if not len(encoding):
            raise InputError(f"{place(sample)}: the text is empty, and the tokenizer adds no token to it")
        return Encoded(
            features=features,
            length=len(encoding),
            extra=Prompt(ids=ids_array(self._start_ids)),
            truncated=bool(encoding.overflowing),
            where=place(sample),
        )


def decoder_start(model: ModelDir) -> int:
    """Return the token that the decoder begins with, as transformers finds it."""
    path = model.path / "generation_config.json"
    own = read_json(path, trust_remote_code=True) if path.is_file() else {}
    for settings in (own, model.config):
        for key in ("decoder_start_token_id", "bos_token_id"):
            value = settings.get(key)
            if isinstance(value, int) and value >= 0:
                return value
    raise InputError(
        f"{model.path}: neither generation_config.json nor config.json has a decoder_start_token_id"
    )
