"""generation_config.json and config.json as fields of `GenerationOptions`.

Follows transformers 5.23: `GenerationConfig.from_pretrained`, `from_model_config` and
`GenerationMixin._prepare_generation_config` (null means unset, then the global default).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnxkit.artifact.configuration import nested_text
from onnxkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

GENERATION_CONFIG = "generation_config.json"

_OWN_NAMES = {"eos_token_id": "eos_token_ids", "forced_eos_token_id": "forced_eos_token_ids"}


def stored_values(path: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return what the directory `path` says about generation, nulls left out, and where it says so.

    That is generation_config.json, else the fields of `config` (its config.json) and of the part of it that
    generates.

    Raises:
        InputError: generation_config.json is damaged.
    """
    from onnxkit.safety import read_json

    file = path / GENERATION_CONFIG
    if file.is_file():
        # Nothing is loaded by what it says: a key that names remote code is harmless here.
        values: Mapping[str, Any] = read_json(file, trust_remote_code=True)
        return _without_nulls(values), str(file)
    values = _without_nulls(config)
    inner = _without_nulls(nested_text(config))
    if values.get("force_bos_token_to_be_generated") and "bos_token_id" in values:
        values = {**values, "forced_bos_token_id": values["bos_token_id"]}
    return {**inner, **values}, str(path / "config.json")


def fields_of(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the fields of `GenerationOptions` that `values`, named as in transformers, set.

    Keys that are no such field are passed over: transformers' `generate` does not look at them either,
    except for those that `unsupported` names.

    Raises:
        InputError: a value has the wrong type; the message names `where` and the key.
    """
    fields: dict[str, Any] = {}
    for key, read in _READERS.items():
        value = values.get(key)
        if value is None:
            continue
        try:
            fields[_OWN_NAMES.get(key, key)] = read(value)
        except (TypeError, ValueError, LookupError) as error:
            raise InputError(f"{where}: {key} cannot be {str(value)[:60]!r}: {error}") from error
    if fields.get("pad_token_id") is None and fields.get("eos_token_ids"):
        fields["pad_token_id"] = fields["eos_token_ids"][0]
    return fields


def unsupported(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of `values` that would change transformers' result and that onnxkit does not know."""
    return tuple(key for key, matters in _UNSUPPORTED.items() if matters(values.get(key), values))


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError("a whole number is needed")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("a number is needed")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def _early_stopping(value: Any) -> bool | str:
    return "never" if value == "never" else _truth(value)


def _token(value: Any) -> int:
    token = _integer(value)
    if token < 0:
        raise ValueError("a token id is 0 or more")
    return token


def _special_token(value: Any) -> int | None:
    # Some checkpoints write -1 for "none".
    return None if _integer(value) < 0 else _integer(value)


def _special_tokens(value: Any) -> tuple[int, ...]:
    tokens = value if isinstance(value, list | tuple) else (value,)
    return tuple(token for token in map(_integer, tokens) if token >= 0)


def _sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(_token, _list(item))) for item in _list(value))


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    return tuple((tuple(map(_token, _list(item[0]))), _bias(item[1])) for item in _list(value))


def _bias(value: Any) -> float:
    return -math.inf if value in (-math.inf, "-Infinity") else _number(value)


def _decay(value: Any) -> tuple[int, float]:
    start, factor = _list(value)
    return _integer(start), _number(factor)


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(_list(value))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("texts are needed")
    return texts


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a list that is not empty is needed")
    return list(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size"),
        _integer,
    ),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "num_beams", "num_return_sequences"), _integer),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _number),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), _number),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _number),
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits"), _truth),
    **dict.fromkeys(
        ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"), _special_token
    ),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), _special_tokens),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _special_tokens),
    "early_stopping": _early_stopping,
    "bad_words_ids": _sequences,
    "sequence_bias": _biases,
    "exponential_decay_length_penalty": _decay,
    "stop_strings": _texts,
}


def _is_set(value: Any, _: Mapping[str, Any]) -> bool:
    return value is not None and value is not False


def _differs_from(neutral: float) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _: value is not None and value != neutral


def _contrastive(value: Any, values: Mapping[str, Any]) -> bool:
    # transformers searches contrastively only when it does not sample (get_generation_mode).
    return value is not None and value > 0 and not values.get("do_sample")


_UNSUPPORTED: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "guidance_scale": _differs_from(1),
    "penalty_alpha": _contrastive,
    "diversity_penalty": _differs_from(0),
    "num_beam_groups": _differs_from(1),
    **dict.fromkeys(("dola_layers", "watermarking_config", "constraints", "force_words_ids"), _is_set),
    **dict.fromkeys(("top_h", "token_healing", "max_time", "assistant_ensemble_weight"), _is_set),
}
