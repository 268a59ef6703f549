"""A checkpoint that PyTorch and ONNX Runtime cannot hold side by side: checked with its first layers only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from onnxkit.export.plan import Plan, plan_parts
from onnxkit.machine import memory

_SHARE = 2.2
"""Bytes that a check needs, over those of the float32 weights: PyTorch's, ONNX Runtime's, and activations."""

_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
    "decoder_layers",
)  # fmt: skip
_LEAST = 2


def can_be_checked(model: PreTrainedModel) -> bool:
    """Whether the free memory takes the check of a model with these (empty) weights."""
    elements = sum(parameter.numel() for parameter in model.parameters())
    return _SHARE * 4 * elements < memory().available_bytes


def with_fewer_layers(plan: Plan, build_empty: Callable[..., PreTrainedModel], dtype: torch.dtype) -> Plan:
    """The plan for the checkpoint's first layers: as few as show every kind of layer in its config."""
    config = copy.deepcopy(plan.config)
    _shorten(config)
    inner = config.get_text_config()
    if inner is not config:
        _shorten(inner)
    optimum = len(plan.parts) > 2
    empty = build_empty(plan.build, config)
    _, parts = plan_parts(plan.task, empty, plan.checkpoint, dtype, optimum=optimum)
    return replace(plan, config=config, load=partial(plan.load, config=config), parts=parts)


def layers_of(config: PretrainedConfig) -> int:
    """The most layers of a stack."""
    inner: Any = config.get_text_config()
    counts = [getattr(each, name, None) for each in (config, inner) for name in _COUNTS]
    return max((count for count in counts if isinstance(count, int)), default=0)


def _shorten(config: PretrainedConfig) -> None:
    settings = config.to_dict()
    counts = {name: settings[name] for name in _COUNTS if isinstance(settings.get(name), int)}
    kinds = settings.get("layer_types") or []
    every = {str(kind) for kind in kinds}
    least = next((n for n in range(_LEAST, len(kinds)) if {str(k) for k in kinds[:n]} == every), _LEAST)
    whole = max(counts.values(), default=0)
    for name, value in settings.items():
        if isinstance(value, list) and len(value) == whole > least:
            setattr(config, name, value[:least])
    for name, count in counts.items():
        setattr(config, name, min(count, least))
