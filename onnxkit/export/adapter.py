"""LoRA adapters (peft's directories), merged into the weights of their base model before it is exported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.artifact.companions import companion_files, copy_files
from onnxkit.errors import EnvironmentProblem, InputError, UnsafeError
from onnxkit.safety import check_directory, printable, read_json
from onnxkit.safety.tensor_files import check_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PIP = "pip install 'onnxkit[export,adapter]'"
_MEND = "is this the base model that it was trained on?"
# peft imports the module that this key names.
_NAMES_A_MODULE = "megatron_config"
_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "chat_template", "vocab", "merges")
_SHOWN = 3


def check_adapter(directory: Path, *, allow_pickle: bool = False) -> Mapping[str, Any]:
    """Check an adapter directory before peft sees it, and return its config.

    Raises:
        InputError: no adapter, or a damaged one.
        UnsafeError: pickled weights without `allow_pickle`, a config that makes peft import a module.
        EnvironmentProblem: peft is missing.
    """
    check_directory(directory)
    if not (directory / CONFIG).is_file():
        raise InputError(f"{directory}: no {CONFIG}, so this is no adapter")
    config = read_json(directory / CONFIG)
    if config.get(_NAMES_A_MODULE) is not None:
        raise UnsafeError(f"{directory / CONFIG}: {_NAMES_A_MODULE} names a module to import: refused")
    if (directory / WEIGHTS).is_file():
        check_safetensors(directory / WEIGHTS)
    elif not (directory / PICKLE).is_file():
        raise InputError(f"{directory}: no {WEIGHTS}")
    elif not allow_pickle:
        raise UnsafeError(
            f"{directory / PICKLE}: the weights are a pickle, which can run code; convert them to "
            "safetensors, or pass --allow-pickle (they are then read with weights_only)"
        )
    if importlib.util.find_spec("peft") is None:
        raise EnvironmentProblem(f"merging {directory.name} needs the package peft: {_PIP}")
    return config


def adapter_files(directory: Path) -> tuple[Path, ...]:
    """Config and weights: what the digest of an export with this adapter covers."""
    weights = directory / WEIGHTS
    return directory / CONFIG, weights if weights.is_file() else directory / PICKLE


def copy_adapter_tokenizer(directory: Path, staging: Path) -> None:
    """Copy the tokenizer that was trained with the adapter, if it brings one, over the base model's."""
    names = [name for name in companion_files(directory) if name.startswith(_TOKENIZER)]
    if "tokenizer.json" in names:
        copy_files(directory, tuple(names), staging)


def merge_adapter(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The model with the adapter added to its weights; the adapter has passed `check_adapter`.

    Raises:
        InputError: the adapter does not fit the model, or is of a kind that cannot be merged.
    """
    from peft import PeftModel

    try:
        wrapped: Any = PeftModel.from_pretrained(model, str(directory), is_trainable=False)
        if not hasattr(wrapped, "merge_and_unload"):
            kind = wrapped.peft_config["default"].peft_type.value
            raise InputError(f"{directory}: an adapter of kind {kind} cannot be merged into the weights")
        result = wrapped.load_adapter(str(directory), adapter_name="default", is_trainable=False)
        if result.unexpected_keys or result.missing_keys:
            raise InputError(f"{directory} does not fit the model ({_difference(result)}): {_MEND}")
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(
            f"{directory} does not fit the model: {printable(lines[-1], limit=200)}: {_MEND}"
        ) from error
    return merged


def _difference(result: Any) -> str:
    """Which keys of the adapter the model has no place for, or which it lacks."""
    kind, keys = (
        ("without a place: ", result.unexpected_keys)
        if result.unexpected_keys
        else ("missing: ", result.missing_keys)
    )
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return kind + ", ".join(printable(str(key), limit=120) for key in keys[:_SHOWN]) + more
