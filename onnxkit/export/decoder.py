"""Decoder-only models as one graph that does prefill, single steps and continuation in chunks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from onnxkit.errors import InputError
from onnxkit.export.attention import HookRefused
from onnxkit.export.cache import GraphCache
from onnxkit.export.hooks import moved, run_either_way
from onnxkit.export.operators import OPS
from onnxkit.export.parts import Part
from onnxkit.export.refusals import not_run
from onnxkit.export.signature import (
    BATCH,
    KEPT_LOGITS,
    PAST,
    PAST_LENGTH,
    PRESENT,
    SEQUENCE,
    TOTAL_LENGTH,
    GraphInput,
    Signature,
)
from onnxkit.export.trace import POSITIONS

LOGITS = "logits"
_ATTENTION_LAYERS = frozenset({"attention", "chunked_attention", "full_attention", "sliding_attention"})
"""Of transformers' `layer_types`: those that keep keys and values."""


def decoder_part(model: PreTrainedModel, dtype: torch.dtype) -> Part:
    """The only part of a decoder-only model; `dtype` is the cache's. `model` is left on meta.

    Inputs: `input_ids`, `attention_mask`, `position_ids` (where the model takes them), the past of every
    layer and, optional, how many of the last logits to compute (0: all).

    Raises:
        InputError: a model that keeps nothing, or anything but keys and values, from step to step.
    """
    inputs = [
        GraphInput(name="input_ids", dtype=torch.int64, axes=(BATCH, SEQUENCE)),
        GraphInput(name="attention_mask", dtype=torch.int64, axes=(BATCH, TOTAL_LENGTH)),
    ]
    if POSITIONS in inspect.signature(model.forward).parameters:
        inputs.append(GraphInput(name=POSITIONS, dtype=torch.int64, axes=(BATCH, SEQUENCE)))
    sizes = _cache_sizes(model)
    names = cache_names(len(sizes))
    inputs += [
        GraphInput(name=PAST + name, dtype=dtype, axes=(BATCH, heads, PAST_LENGTH, size))
        for name, (heads, size) in zip(names, (pair for layer in sizes for pair in layer), strict=True)
    ]
    inputs.append(GraphInput(name=KEPT_LOGITS, dtype=torch.int64, axes=(), default=0))
    outputs = (LOGITS, *(PRESENT + name for name in names))
    signature = Signature(inputs=tuple(inputs), outputs=outputs)
    return Part(name="model", file="model.onnx", signature=signature, run=run_decoder)


def cache_names(layers: int, kind: str = "") -> list[str]:
    """`0.key`, `0.value`, `1.key` …, or with a kind `0.decoder.key` …: the graph's names of a cache."""
    middle = f"{kind}." if kind else ""
    return [f"{layer}.{middle}{half}" for layer in range(layers) for half in ("key", "value")]


def run_decoder(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A `Part`'s run: logits of the last `num_logits_to_keep` positions, every layer's keys and values."""
    past = [tensor for name, tensor in inputs.items() if name.startswith(PAST)]
    cache = GraphCache(list(zip(past[::2], past[1::2], strict=True)))
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", POSITIONS) if name in inputs}
    with KeptLogits(model, inputs.get(KEPT_LOGITS)):
        called: Any = model
        output = called(**given, past_key_values=cache, use_cache=True)
    present = [tensor for layer in range(len(cache)) for tensor in cache.present(layer)]
    named = zip(cache_names(len(cache)), present, strict=True)
    return {LOGITS: output.logits, **{PRESENT + name: tensor for name, tensor in named}}


class KeptLogits:
    """Within the block the model's last projection gets the last `count` positions only (0 or None: all).

    Asked of every model in the same way; transformers' `logits_to_keep` would want a Python number.
    """

    def __init__(self, model: PreTrainedModel, count: torch.Tensor | None) -> None:
        anywhere: Any = model
        self._projection: Any = anywhere.get_output_embeddings()
        self._count = count
        self._handle: Any = None

    def __enter__(self) -> None:
        if self._count is not None:
            self._handle = self._projection.register_forward_pre_hook(self._cut)

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _cut(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *other = arguments
        if torch.compiler.is_exporting():
            return (OPS.last_rows(hidden, self._count), *other)
        return (hidden[:, -int(self._count) :], *other)  # type: ignore[arg-type]


def _cache_sizes(model: PreTrainedModel) -> list[list[tuple[int, int]]]:
    """Per layer (heads, size) of its keys and of its values, asked of the model in one run without values."""
    others = sorted(set(getattr(model.config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if others:
        raise InputError(_other_states(model, f"layers of {', '.join(others)}"))
    try:
        layers = run_either_way(model, lambda: _kept(moved(model, "meta")))
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise InputError(_other_states(model)) from error
    except (RuntimeError, AssertionError, HookRefused) as error:
        raise InputError(not_run(model, error)) from error
    if not layers or not all(isinstance(tensor, torch.Tensor) for layer in layers for tensor in layer):
        raise InputError(_other_states(model))
    return [[(int(tensor.shape[1]), int(tensor.shape[3])) for tensor in layer] for layer in layers]


def _kept(model: Any) -> list[tuple[Any, Any]]:
    """Keys and values of every layer after two tokens, on meta; None where a layer keeps none."""
    sample = torch.ones(1, 2, dtype=torch.int64, device="meta")
    cache = DynamicCache()
    model(input_ids=sample, attention_mask=sample, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def _other_states(model: PreTrainedModel, what: str = "") -> str:
    said = "keeps other states than keys and values from token to token"
    if not what and "past_key_values" not in inspect.signature(model.forward).parameters:
        said = "takes no past keys and values"
    else:
        said += f" ({what or 'a recurrent or convolutional layer'})"
    return (
        f"{type(model).__name__} {said}: onnxkit exports decoders with an attention cache only "
        "(--task feature-extraction may still export its hidden states)"
    )
