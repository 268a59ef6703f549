"""Which layers of a model compute the same, told from their modules before anything is traced."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from onnxkit.export.parts import Part
from onnxkit.export.signature import PAST, PRESENT, Signature
from onnxkit.graph.layers import LayerPlan, plan_layers

_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_number", "layer_index", "idx", "index"})
"""Attributes that tell a layer's place and nothing else."""


def layers_to_trace(part: Part, model: PreTrainedModel, prefix: str) -> LayerPlan | None:
    """A plan to trace a few layers of a decoder and clone the others; None where all have to be traced."""
    count = len({name.split(".")[1] for name in part.signature.outputs if name.startswith(PRESENT)})
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if part.name != "model" or len(lists) != 1:
        return None
    name, layers = lists[0]
    lists_of_config = _per_layer(model.config.get_text_config(), count)
    kinds = [
        (_kind(layer), tuple(repr(values[number]) for values in lists_of_config))
        for number, layer in enumerate(layers)
    ]
    return plan_layers(prefix + name, kinds)


def _per_layer(config: PretrainedConfig, count: int) -> list[list[Any]]:
    """The settings that have a value for every layer (`layer_types`)."""
    values = [v for _, v in sorted(config.to_dict().items()) if isinstance(v, list)]
    return [value for value in values if len(value) == count]


def _kind(layer: torch.nn.Module) -> tuple[object, ...]:
    """Classes, plain attributes and shapes of a layer and all that it consists of."""
    return tuple(
        (name, type(module), _attributes(module), _shapes(module)) for name, module in layer.named_modules()
    )


def _attributes(module: torch.nn.Module) -> tuple[tuple[str, str], ...]:
    plain = (bool, int, float, str, tuple, type(None))
    own = vars(module).items()
    return tuple(
        sorted((k, repr(v)) for k, v in own if isinstance(v, plain) and k[0] != "_" and k not in _NUMBERS)
    )


def _shapes(module: torch.nn.Module) -> tuple[tuple[object, ...], ...]:
    tensors = [*module._parameters.items(), *module._buffers.items()]
    return tuple((name, tuple(t.shape), t.dtype) if t is not None else (name,) for name, t in tensors)


def first_layers(part: Part, count: int) -> Part:
    """The part with the cache of the first layers only."""
    signature = part.signature
    inputs = tuple(given for given in signature.inputs if _within(given.name, count))
    outputs = tuple(name for name in signature.outputs if _within(name, count))
    return dataclasses.replace(part, signature=Signature(inputs=inputs, outputs=outputs))


def _within(name: str, count: int) -> bool:
    cached = name.startswith((PAST, PRESENT))
    return not cached or int(name.split(".")[1]) < count


@contextlib.contextmanager
def shortened(model: PreTrainedModel, plan: LayerPlan, prefix: str) -> Iterator[None]:
    """Within the block the model has its first layers only."""
    owner_path, _, name = plan.path.removeprefix(prefix).rpartition(".")
    owner = model.get_submodule(owner_path)
    layers: Any = getattr(owner, name)
    setattr(owner, name, torch.nn.ModuleList(list(layers)[: plan.traced]))
    try:
        yield
    finally:
        setattr(owner, name, layers)
