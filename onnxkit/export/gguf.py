"""A GGUF file (llama.cpp's format) as a checkpoint: config, tokenizer and weights in one file.

transformers reads it: the weights are dequantized, so the graph is as exact as the file, and as large as
its dtype. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxkit.errors import EnvironmentProblem, InputError
from onnxkit.safety import printable
from onnxkit.safety.tensor_files import check_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PIP = "pip install 'onnxkit[export,gguf]'"
_ROTARY_FACTORS = "rope_freqs.weight"
# What a damaged or foreign file makes transformers and gguf raise.
_READ_ERRORS = (ValueError, KeyError, IndexError, TypeError, OverflowError, AttributeError, OSError)


def read_gguf(file: Path) -> Mapping[str, Any]:
    """Check a GGUF file and return its config as the content of a config.json, with `architectures`.

    Raises:
        InputError: damaged, an architecture that transformers does not read from GGUF, or rotary
            frequencies that it would silently ignore.
        EnvironmentProblem: torch, transformers or gguf is missing.
    """
    check_gguf(file)
    for package in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(f"reading {file.name} needs the package {package}: {_PIP}")
    try:
        _refuse_rotary_factors(file)
        config = gguf_config(file)
    except _READ_ERRORS as error:
        raise InputError(f"{file}: {_first_line(error)}") from error
    return {**config.to_dict(), "architectures": [_architecture(config, file)]}


def gguf_config(file: Path) -> PretrainedConfig:
    """The config that transformers makes of the file's metadata."""
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    return config


def write_gguf_companions(file: Path, settings: Mapping[str, Any], staging: Path) -> None:
    """Write config.json, generation_config.json and the tokenizer's files.

    Raises:
        InputError: transformers cannot build a tokenizer from the file.
    """
    from transformers import AutoTokenizer, GenerationConfig

    config = gguf_config(file)
    config.architectures = list(settings["architectures"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # tokenizers raises the bare class
        raise InputError(f"{file}: no tokenizer can be made from it: {_first_line(error)}") from error
    tokenizer.save_pretrained(staging)
    config.save_pretrained(staging)
    GenerationConfig.from_model_config(config).save_pretrained(staging)


def _refuse_rotary_factors(file: Path) -> None:
    from gguf import GGUFReader

    if any(tensor.name == _ROTARY_FACTORS for tensor in GGUFReader(file).tensors):
        raise InputError(
            f"{file}: its rotary frequencies are scaled by a tensor ({_ROTARY_FACTORS}), which transformers "
            "does not read, so its answers would be wrong: export the original checkpoint"
        )


def _architecture(config: PretrainedConfig, file: Path) -> str:
    """The class that generates with this config (files do not name one)."""
    from transformers.models.auto import modeling_auto

    if config.architectures:
        return str(config.architectures[0])
    for names in (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        found: Any = names.get(config.model_type)
        if found:
            return str(found if isinstance(found, str) else found[0])
    raise InputError(f"{file}: transformers has no model that generates for {config.model_type}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0], limit=200) if lines else f"damaged ({type(error).__name__})"
