"""The special tokens of a whisper model, and what its files say about decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.errors import InputError, UsageError
from onnxkit.safety import read_json
from onnxkit.tasks.whisper_languages import CODES, language_code

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onnxkit.artifact import ModelDir

_MULTILINGUAL_VOCABULARY = 51_865
"""OpenAI's tokenizers have at least as many ids when they are multilingual, one less for English only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperTokens:
    """Ids and defaults; from generation_config.json, then config.json, then the tokenizer.

    Attributes:
        start: `<|startoftranscript|>`, where decoding starts.
        eos: `<|endoftext|>`; ids below it are text.
        no_timestamps: `<|notimestamps|>`; the ids above it are timestamps. None: the model has none.
        languages: code -> id; empty for English-only models.
        tasks: "transcribe" and "translate" -> id; empty for English-only models.
        language: the code that the model's files fix, if any.
        task: the task that the model's files fix; "transcribe" where they fix none.
        suppress: ids that never occur.
        begin_suppress: ids that do not occur first.
        max_initial_timestamp: steps of 0.02 s before which the first timestamp must stand, if any.
        max_length: tokens of prefix and transcript of a window, together.
        no_speech_threshold: with `logprob_threshold`: a window is silent where the probability of no speech
            is above the one and the mean log-probability of its tokens below the other.
        logprob_threshold: see there; also, a window of a lower mean is decoded again (`temperatures`).
        compression_ratio_threshold: a window whose tokens zlib packs better than this is decoded again.
    """

    start: int
    eos: int
    no_timestamps: int | None
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    language: str | None
    task: str
    suppress: tuple[int, ...]
    begin_suppress: tuple[int, ...]
    max_initial_timestamp: int | None
    max_length: int
    no_speech_threshold: float | None = None
    logprob_threshold: float | None = None
    compression_ratio_threshold: float | None = None

    def language_id(self, wanted: str | None) -> int | None:
        """Return the id of a language (None: to be detected, or an English-only model).

        Raises:
            UsageError: the model does not have it.
        """
        if not self.languages:
            if wanted is not None and CODES.get(wanted.lower(), wanted.lower()) != "en":
                raise UsageError(f"this model knows English only, not {wanted!r}")
            return None
        code = wanted or self.language or (next(iter(self.languages)) if len(self.languages) == 1 else None)
        return None if code is None else self.languages[language_code(code, self.languages)]

    def task_id(self, *, translate: bool) -> int | None:
        """Return the id of a task (None: an English-only model); raises UsageError where it has it not."""
        if translate and "translate" not in self.tasks:
            raise UsageError("this model transcribes English only; it cannot translate")
        return self.tasks.get("translate" if translate else self.task)


def load_tokens(model: ModelDir, tokenizer: Tokenizer) -> WhisperTokens:
    """Read generation_config.json and config.json of `model.path`.

    The task is "transcribe" where neither file and no `forced_decoder_ids` says another; there,
    transformers gives the decoder no task at all.

    Raises:
        InputError: tokens that nothing names, or values of the wrong form.
    """
    path = model.path / "generation_config.json"
    try:
        return _tokens(_settings(path, model.config), model.config, tokenizer)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not usable for whisper: {error}") from error


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_config.json without nulls, and what config.json says beside it.

    Older checkpoints have all of it in config.json. Where there are both files, suppressed tokens
    come from the former only, as in transformers.
    """
    names = ["decoder_start_token_id", "eos_token_id", "forced_decoder_ids"]
    generation = read_json(path) if path.is_file() else None
    if generation is None:
        names += ["suppress_tokens", "begin_suppress_tokens", "max_length"]
    older = {name: config[name] for name in names if name in config}
    given = {**older, **{key: value for key, value in (generation or {}).items() if value is not None}}
    return {key: value for key, value in given.items() if value is not None}


def _tokens(given: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer) -> WhisperTokens:
    eos = given.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) else eos
    no_timestamps = given.get("no_timestamps_token_id", tokenizer.token_to_id("<|notimestamps|>"))
    multilingual = given.get("is_multilingual", config.get("vocab_size", 0) >= _MULTILINGUAL_VOCABULARY)
    languages, tasks = _languages(given, tokenizer), _tasks(given, tokenizer)
    forced = dict(given.get("forced_decoder_ids") or ())
    by_id = {value: name for name, value in {**languages, **tasks}.items()}
    named = [by_id.get(forced[position]) for position in sorted(forced) if position in (1, 2)]
    return WhisperTokens(
        start=_required("decoder_start_token_id", given, tokenizer, "<|startoftranscript|>"),
        eos=int(eos) if eos is not None else _required("eos_token_id", {}, tokenizer, "<|endoftext|>"),
        no_timestamps=None if no_timestamps is None else int(no_timestamps),
        languages=languages if multilingual else {},
        tasks=tasks if multilingual else {},
        language=given.get("language") or next((one for one in named if one in languages), None),
        task=given.get("task") or next((one for one in named if one and one in tasks), "transcribe"),
        suppress=_ids(given.get("suppress_tokens")),
        begin_suppress=_ids(given.get("begin_suppress_tokens")),
        max_initial_timestamp=given.get("max_initial_timestamp_index"),
        max_length=int(given.get("max_length") or config.get("max_target_positions") or 448),
        **{name: _number(given.get(name)) for name in _THRESHOLDS},
    )


_THRESHOLDS = ("no_speech_threshold", "logprob_threshold", "compression_ratio_threshold")


def _languages(given: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, int]:
    if "lang_to_id" in given:
        pairs = {str(name).strip("<|>"): int(value) for name, value in given["lang_to_id"].items()}
    else:
        found = {code: tokenizer.token_to_id(f"<|{code}|>") for code in CODES.values()}
        pairs = {code: value for code, value in found.items() if value is not None}
    return pairs


def _tasks(given: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, int]:
    if "task_to_id" in given:
        return {str(name): int(value) for name, value in given["task_to_id"].items()}
    found = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("transcribe", "translate")}
    return {name: value for name, value in found.items() if value is not None}


def _required(name: str, given: Mapping[str, Any], tokenizer: Tokenizer, token: str) -> int:
    value = given.get(name, tokenizer.token_to_id(token))
    if value is None:
        raise ValueError(f"neither {name} nor a token {token} is there")
    return int(value)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(int(one) for one in value or ())


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
