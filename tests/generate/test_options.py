"""The model's own settings against transformers' reading of the same files; what the caller may combine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.generate.option_checks import flag
from onnxkit.generate.options import GenerationOptions, defaults, merged
from onnxkit.progress import Progress

FILES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "llama 3": {
        "bos_token_id": 128000, "eos_token_id": [128001, 128008], "do_sample": True, "temperature": 0.6,
        "top_p": 0.9, "transformers_version": "4.42.3",
    },
    "bart": {
        "bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
        "early_stopping": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
        "length_penalty": 2.0, "max_length": 142, "min_length": 56, "no_repeat_ngram_size": 3, "num_beams": 4,
    },
    "marian": {
        "bad_words_ids": [[58100]], "decoder_start_token_id": 58100, "eos_token_id": 0, "pad_token_id": 58100,
        "forced_eos_token_id": 0, "max_length": 512, "num_beams": 4, "renormalize_logits": True,
    },
    "whisper": {
        "begin_suppress_tokens": [220, 50257], "suppress_tokens": [1, 2, 7], "eos_token_id": 50257,
        "decoder_start_token_id": 50258, "is_multilingual": True, "lang_to_id": {"<|en|>": 50259},
        "max_length": 448, "return_timestamps": False, "pad_token_id": 50257,
    },
    "nulls": {"temperature": None, "top_k": None, "do_sample": None, "eos_token_id": 5, "pad_token_id": None},
    "rare": {
        "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "top_k": 0,
        "do_sample": True, "repetition_penalty": 1.2, "encoder_repetition_penalty": 1.1, "min_new_tokens": 3,
        "encoder_no_repeat_ngram_size": 2, "exponential_decay_length_penalty": [4, 1.5], "max_new_tokens": 77,
        "sequence_bias": [[[4, 5], -2.0]], "remove_invalid_values": True, "num_return_sequences": 2,
        "stop_strings": ["###"], "forced_eos_token_id": [3, 4], "early_stopping": "never",
    },
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "decoder": {"eos_token_id": 50256, "bos_token_id": 50256, "n_embd": 8, "max_length": 30},
    "nested": {"eos_token_id": None, "text_config": {"eos_token_id": [1, 106], "bos_token_id": 2}},
    "old bart": {
        "bos_token_id": 3, "eos_token_id": 2, "force_bos_token_to_be_generated": True, "num_beams": 2,
    },
    "encoder-decoder": {
        "is_encoder_decoder": True, "bos_token_id": 7, "eos_token_id": 1, "decoder": {"eos_token_id": 9},
    },
}  # fmt: skip


def _model(path: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> ModelDir:
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    (path / "config.json").write_text(json.dumps(config))
    return ModelDir(path=path, task="raw", components={}, weight_files=(), config=config, manifest=None)


def theirs(model: ModelDir) -> dict[str, Any]:
    """Return transformers' settings after all its defaults, special tokens as `generate` prepares them."""
    import transformers

    if (model.path / "generation_config.json").exists():
        config = transformers.GenerationConfig.from_pretrained(str(model.path))
    else:
        config = transformers.GenerationConfig.from_pretrained(
            str(model.path), config_file_name="config.json", _from_model_config=True
        )
    length = config.max_length
    config.update(**config._get_default_generation_params(), defaults_only=True)
    values = {**config.to_dict(), "max_length": length}
    ends = values["eos_token_id"]
    values["eos_token_ids"] = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    if values["pad_token_id"] is None and values["eos_token_ids"]:
        values["pad_token_id"] = values["eos_token_ids"][0]
    if values["decoder_start_token_id"] is None and model.config.get("is_encoder_decoder"):
        values["decoder_start_token_id"] = values["bos_token_id"]
    forced = values["forced_eos_token_id"]
    values["forced_eos_token_ids"] = forced if forced is not None else ()
    return values


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _equal(options: GenerationOptions, values: dict[str, Any]) -> None:
    for field in dataclasses.fields(options):
        if field.name in ("presence_penalty", "frequency_penalty", "seed"):
            continue
        own, other = getattr(options, field.name), _as_tuples(values[field.name])
        if field.name == "forced_eos_token_ids" and isinstance(other, int):
            other = (other,)
        assert own == other or (not own and other is None), field.name


@pytest.mark.parametrize("name", FILES)
def test_generation_config_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    model = _model(tmp_path, {"is_encoder_decoder": name in ("bart", "marian", "whisper")}, FILES[name])
    _equal(defaults(model), theirs(model))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_read_where_there_is_no_generation_config(name: str, tmp_path: Path) -> None:
    model = _model(tmp_path, CONFIGS[name], None)
    _equal(defaults(model), theirs(model))


class _Heard(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_settings_that_would_change_the_result_are_named_once(tmp_path: Path) -> None:
    settings = {
        "guidance_scale": 1.5, "dola_layers": "high", "penalty_alpha": 0.6, "lang_to_id": {},
        "watermarking_config": {"bias": 2.0}, "top_h": 0.4, "num_beam_groups": 1, "diversity_penalty": 0.0,
        "token_healing": False,
    }  # fmt: skip
    heard = _Heard()
    defaults(_model(tmp_path, {}, settings), progress=heard)
    (warning,) = heard.warnings
    assert "guidance_scale, penalty_alpha, dola_layers, watermarking_config, top_h is not" in warning
    assert str(tmp_path) in warning


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "hot"}, "temperature cannot be 'hot': a number is needed"),
        ({"top_k": 1.5}, "top_k cannot be '1.5': a whole number"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id"),
        ({"bad_words_ids": [3]}, "bad_words_ids"),
        ({"sequence_bias": [[[1]]]}, "sequence_bias"),
        ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"stop_strings": [1]}, "stop_strings"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"generation_config\.json: {message}"):
        defaults(_model(tmp_path, {}, settings))


def test_a_negative_token_is_none(tmp_path: Path) -> None:
    settings = {"pad_token_id": -1, "bos_token_id": -1, "eos_token_id": [-1, 4], "suppress_tokens": [-1]}
    options = defaults(_model(tmp_path, {}, settings))
    assert (options.bos_token_id, options.eos_token_ids, options.suppress_tokens) == (None, (4,), ())
    assert options.pad_token_id == 4


LLAMA = GenerationOptions(do_sample=True, temperature=0.6, top_p=0.9, max_length=100, eos_token_ids=(2,))
PLAIN = GenerationOptions()


def test_a_sampling_option_means_sampling() -> None:
    assert not merged(PLAIN).do_sample
    assert merged(PLAIN, top_p=0.5).do_sample
    assert merged(PLAIN, temperature=1.0).do_sample
    assert merged(PLAIN, num_return_sequences=3).do_sample
    assert not merged(PLAIN, num_return_sequences=3, num_beams=3).do_sample
    assert not merged(PLAIN, repetition_penalty=1.3, seed=4).do_sample


def test_no_sampling_can_be_asked_for() -> None:
    assert merged(LLAMA, do_sample=False) == dataclasses.replace(LLAMA, do_sample=False)
    assert not merged(LLAMA, temperature=0).do_sample
    assert not merged(LLAMA, temperature=0.0, do_sample=False).do_sample


def test_none_is_not_given() -> None:
    assert merged(LLAMA, temperature=None, max_new_tokens=None) == LLAMA


def test_a_given_length_takes_the_place_of_the_models() -> None:
    assert LLAMA.wanted_new_tokens(30) == 70
    assert merged(LLAMA, max_new_tokens=5).wanted_new_tokens(30) == 5
    assert merged(merged(PLAIN, max_new_tokens=5), max_length=50).wanted_new_tokens(30) == 20
    assert PLAIN.wanted_new_tokens(30) is None
    assert GenerationOptions(min_length=10).least_new_tokens(4) == 6
    assert GenerationOptions(min_length=10).least_new_tokens(40) == 0
    assert GenerationOptions(min_length=10, min_new_tokens=2).least_new_tokens(4) == 2
    assert merged(GenerationOptions(min_new_tokens=2), min_length=10).least_new_tokens(4) == 6
    with pytest.raises(UsageError, match="100 tokens and the greatest length is 100: raise --max-length"):
        LLAMA.wanted_new_tokens(100)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1.0}, "--temperature must be a number over 0, not -1.0"),
        ({"top_p": 1.5}, "--top-p must be from 0 to 1"),
        ({"top_k": -1}, "--top-k"),
        ({"min_p": 2.0}, "--min-p"),
        ({"typical_p": 0.0}, "--typical-p"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"presence_penalty": float("nan")}, "--presence-penalty"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be 1 or more"),
        ({"num_beams": 0}, "--num-beams"),
        ({"num_beams": 2, "early_stopping": "soon"}, "--early-stopping must be true, false or never"),
        ({"seed": -1}, "--seed"),
        ({"max_new_tokens": 5, "max_length": 9}, "--max-new-tokens and --max-length contradict"),
        ({"min_new_tokens": 5, "min_length": 9}, "--min-new-tokens and --min-length contradict"),
        ({"min_new_tokens": 9, "max_new_tokens": 5}, "--min-new-tokens 9 is more than"),
        ({"temperature": 0, "top_p": 0.9}, "--temperature 0 takes the best token: --top-p"),
        ({"temperature": 0, "do_sample": True}, "--temperature 0 takes the best token: --do-sample"),
        ({"do_sample": False, "top_k": 5}, "--no-do-sample takes the best token: --top-k"),
        ({"do_sample": False, "num_return_sequences": 2}, "would give one text 2 times"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than the 2 beams: give --num-beams 3"),
        ({"length_penalty": 2.0}, "--length-penalty belongs to beam search: add --num-beams"),
        ({"early_stopping": True}, "--early-stopping belongs to beam search"),
        (
            {"suppress_tokens": (3,), "forced_bos_token_id": 3},
            "suppress_tokens holds every token of forced_bos_token_id",
        ),
        ({"suppress_tokens": (3, 4), "forced_eos_token_ids": (3, 4)}, "every token of forced_eos_token_ids"),
    ],
)
def test_what_does_not_go_together_is_said_by_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        merged(PLAIN, **given)


def test_the_models_own_bad_value_is_blamed_on_its_file() -> None:
    bad = GenerationOptions(temperature=0.0, num_beams=1)
    assert merged(bad) == bad  # without sampling it has no effect
    with pytest.raises(InputError, match=r"generation_config.json: temperature .* or give --temperature"):
        merged(bad, top_p=0.5)
    assert merged(bad, temperature=0.5).temperature == 0.5
    with pytest.raises(InputError, match=r"generation_config.json: suppress_tokens holds every token"):
        merged(GenerationOptions(suppress_tokens=(3,), forced_bos_token_id=3), top_k=5)


def test_names_of_options() -> None:
    assert flag("max_new_tokens") == "--max-new-tokens"
    assert flag("bad_words_ids") == "--bad-words"


def test_options_cost_no_numpy() -> None:
    import subprocess
    import sys

    code = "import onnxkit.generate.options, sys; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
