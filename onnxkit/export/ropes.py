"""Rotary tables whose frequencies depend on the length: computed in the graph, without state.

Transformers changes a buffer in place (LongRoPE, arXiv:2402.13753) or asks a Python number (dynamic NTK
scaling); neither can be traced. Here the frequencies follow from `position_ids` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from onnxkit.export.probes import Replacement

_LONG = "long_inv_freq"


def _rotary_modules(model: torch.nn.Module) -> Iterator[Any]:
    """Modules that scale by length, all layers alike."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and kind in _FREQUENCIES:
            yield module


def prepare(model: PreTrainedModel) -> None:
    """Give LongRoPE's second set of frequencies to the model as a buffer, while buffers have content."""
    for module in _rotary_modules(model):
        if module.rope_type == "longrope":
            length = _trained_length(module) + 1
            long, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, torch.device("cpu"), seq_len=length)
            if _LONG in vars(module):
                delattr(module, _LONG)
            module.register_buffer(_LONG, long, persistent=False)


def _trained_length(module: Any) -> int:
    return int(module.config.rope_parameters["original_max_position_embeddings"])


def scaled_ropes(model: PreTrainedModel) -> Iterator[Replacement]:
    """The rotary classes of `model` whose forward has to be traced in another way."""
    classes = {type(module): module for module in _rotary_modules(model)}
    for cls, module in classes.items():
        plain = getattr(getattr(cls.forward, "__wrapped__", None), "__wrapped__", None)
        if plain is not None:
            yield cls, "forward", _stateless(plain, _FREQUENCIES[module.rope_type])


def _stateless(plain: Callable[..., Any], frequencies: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        kept = self._buffers["inv_freq"]
        self._buffers["inv_freq"] = frequencies(self, position_ids.max() + 1)
        try:
            return plain(self, x, position_ids)
        finally:
            self._buffers["inv_freq"] = kept

    return forward


def _long(module: Any, length: torch.Tensor) -> torch.Tensor:
    """The long factors beyond the length of the training, the short ones within it."""
    return torch.where(length > _trained_length(module), module.long_inv_freq, module.original_inv_freq)


def _dynamic(module: Any, length: torch.Tensor) -> torch.Tensor:
    """NTK scaling: the base grows with the length, from the length of the training on."""
    config, settings = module.config, module.config.rope_parameters
    size = 2 * module.original_inv_freq.shape[0]
    trained, factor = float(config.max_position_embeddings), float(settings["factor"])
    stretch = factor * length.to(torch.float32).clamp(min=trained) / trained - (factor - 1.0)
    base = settings["rope_theta"] * stretch ** (size / (size - 2))
    steps = torch.arange(0, size, 2, device=length.device, dtype=torch.float32) / size
    return 1.0 / torch.pow(base, steps)


_FREQUENCIES: dict[str, Callable[..., torch.Tensor]] = {"longrope": _long, "dynamic": _dynamic}
