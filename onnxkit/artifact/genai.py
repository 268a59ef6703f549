"""genai_config.json: what onnxruntime-genai (0.18) reads beside a graph to generate with it.

Names follow its own builder. The type is always "decoder", its generic one: our graphs need none of what it
does for single architectures by their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxkit.artifact.configuration import (
    attention_heads,
    attention_window,
    decoder_positions,
    positive,
    text_part,
)
from onnxkit.artifact.manifest import Component
from onnxkit.errors import InputError, UsageError
from onnxkit.progress import Progress
from onnxkit.runtime import TensorSpec
from onnxkit.safety import read_json

GENAI_NAME = "genai_config.json"
CACHE_KEY = "onnxkit.cache"
"""Key of a graph's metadata."""
SHARED = "shared"
"""Its value where one buffer may be bound as past and present."""

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_INPUTS = ("input_ids", "attention_mask", "position_ids")
_DEFAULT_CONTEXT = 2048
# genai allocates the cache of a shared buffer for this many tokens at once, whatever is asked of it.
_MAX_LENGTH = 4096
_SEARCH = {
    "diversity_penalty": 0.0, "do_sample": False, "early_stopping": True, "length_penalty": 1.0,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "num_return_sequences": 1,
    "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
}  # fmt: skip
_PROVIDERS: Mapping[bool, list[Any]] = {False: [], True: [{"cuda": {"enable_cuda_graph": "0"}}]}
"""What provider genai opens the graph with, by whether it was written for CUDA."""


def check_genai(task: str, config: Mapping[str, Any], *, wanted: bool, progress: Progress) -> None:
    """Warn, when `--genai-config` is asked for, of what onnxruntime-genai computes otherwise.

    It pads the shorter prompts of a batch at the right, and new tokens follow the padding: what counts
    slots, not positions, counts the padding between.

    Args:
        task: the model's task.
        config: its config.json.
        wanted: whether the option is given.
        progress: is warned.

    Raises:
        UsageError: a model that generates no text by itself.
    """
    if not wanted:
        return
    if task != "text-generation":
        raise UsageError(f"--genai-config does not apply to {task}, only to text-generation")
    window = attention_window(config)
    counts = f"attention looks {window} slots back" if window is not None else None
    if config.get("model_type") == "mpt":
        counts = "attention weighs by the distance in slots (ALiBi)"
    if counts is not None:
        progress.warn(
            f"onnxruntime-genai pads a batch's shorter prompts at the right, and this model's {counts}, "
            "padding counted: give genai prompts of one length, or one at a time"
        )


def fit_genai_config(directory: Path, graph: Component, *, shared: bool, cuda: bool, wanted: bool) -> None:
    """Write `genai_config.json` if it is wanted, or fit the one that came along from an earlier stage.

    Args:
        directory: where graph and configs lie.
        graph: the decoder-only graph.
        shared: whether its past buffers may be longer than what they hold (`CACHE_KEY`).
        cuda: whether it was written for CUDA.
        wanted: whether to write the file if there is none.

    Raises:
        InputError: a graph that onnxruntime-genai cannot drive, or a file that is none of its configurations.
    """
    if (directory / GENAI_NAME).is_file():
        _refresh(directory, graph, shared, cuda)
    elif wanted:
        _make(directory, graph, shared, cuda)


def _make(directory: Path, graph: Component, shared: bool, cuda: bool) -> None:
    config = text_part(read_json(directory / "config.json", trust_remote_code=True))
    generation = directory / "generation_config.json"
    asked = read_json(generation, trust_remote_code=True) if generation.is_file() else {}
    layers, kv_heads, head_size = _cache_shape(directory / graph.file, graph.inputs)
    context = decoder_positions(config) or positive(config, "seq_length") or _DEFAULT_CONTEXT
    content = {
        "model": {
            **_tokens({**config, **{key: value for key, value in asked.items() if value is not None}}),
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": _PROVIDERS[cuda]},
                "filename": graph.file,
                "head_size": head_size,
                "hidden_size": int(config.get("hidden_size") or config.get("n_embd") or kv_heads * head_size),
                "inputs": _input_names(graph.inputs),
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": attention_heads(config) or kv_heads,
                "num_hidden_layers": layers,
                "num_key_value_heads": kv_heads,
            },
            "type": "decoder",
            "vocab_size": _vocabulary(graph.outputs, config),
        },
        "search": {
            **{key: asked[key] if asked.get(key) is not None else value for key, value in _SEARCH.items()},
            "max_length": min(context, _MAX_LENGTH),
            "past_present_share_buffer": shared,
        },
    }
    _write(directory, content)


def _refresh(directory: Path, graph: Component, shared: bool, cuda: bool) -> None:
    """Change what depends on the graph; whatever else was changed by hand stays."""
    content = read_json(directory / GENAI_NAME)
    try:
        decoder = content["model"]["decoder"]
        decoder |= {"filename": graph.file, "inputs": _input_names(graph.inputs)}
        session = decoder.setdefault("session_options", {})
        if session.get("provider_options", []) == _PROVIDERS[not cuda]:
            session["provider_options"] = _PROVIDERS[cuda]
        content["search"]["past_present_share_buffer"] = shared
    except (KeyError, TypeError) as error:
        raise InputError(f"{directory / GENAI_NAME}: no configuration of onnxruntime-genai") from error
    _write(directory, content)


def _write(directory: Path, content: Mapping[str, Any]) -> None:
    (directory / GENAI_NAME).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _input_names(inputs: Sequence[TensorSpec]) -> dict[str, str]:
    taken = {spec.name for spec in inputs}
    names = {name: name for name in _INPUTS if name in taken}
    return {
        **names,
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }


def _cache_shape(graph: Path, inputs: Sequence[TensorSpec]) -> tuple[int, int, int]:
    """Number of layers, heads of keys and values, and their size: the same in every layer, or refused."""
    past = {spec.name: spec.shape for spec in inputs if _PAST.fullmatch(spec.name)}
    others = [spec.name for spec in inputs if spec.name not in past and spec.name not in _INPUTS]
    if others:
        raise InputError(f"{graph}: onnxruntime-genai would not feed the input {others[0]}")
    shapes = {(shape[1], shape[3]) for shape in past.values() if len(shape) == 4}
    layers = {int(match[1]) for match in map(_PAST.fullmatch, past) if match}
    kv_heads, head_size = next(iter(shapes)) if len(shapes) == 1 else (None, None)
    if not isinstance(kv_heads, int) or not isinstance(head_size, int) or layers != set(range(len(layers))):
        raise InputError(f"{graph}: onnxruntime-genai needs a cache of one shape in every layer")
    return len(layers), kv_heads, head_size


def _vocabulary(outputs: Sequence[TensorSpec], config: Mapping[str, Any]) -> int:
    logits = next((spec.shape for spec in outputs if spec.name == "logits"), ())
    return int(logits[-1]) if logits and isinstance(logits[-1], int) else int(config["vocab_size"])


def _tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens; genai needs one of each, and takes a list for the end."""
    end = values.get("eos_token_id")
    ends = [int(token) for token in (end if isinstance(end, list) else [end]) if token is not None]
    first = ends[0] if ends else 0
    begin, pad = values.get("bos_token_id"), values.get("pad_token_id")
    return {
        "bos_token_id": first if begin is None else int(begin),
        "eos_token_id": ends if len(ends) > 1 else first,
        "pad_token_id": first if pad is None else int(pad),
    }
