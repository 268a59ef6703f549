"""Attention modules that compute by hand what transformers' attention interface would express.

An adapter is one forward function that says the same with the semantic operator, for one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def _mpnet_forward(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **other: Any,
) -> tuple[torch.Tensor]:
    """MPNet adds a relative position bias, shared by its layers, to the scores."""
    heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
    q, k, v = (part(hidden_states).view(heads).transpose(1, 2) for part in (self.q, self.k, self.v))
    scale = self.attention_head_size**-0.5
    out = torch.ops.onnxkit.attention(q, k, v, attention_mask, position_bias, scale)
    return (self.o(out.reshape(*hidden_states.shape[:-1], -1)),)


ADAPTERS: dict[str, Callable[..., Any]] = {"MPNetSelfAttention": _mpnet_forward}
"""Class name of an attention module → the forward function to trace in its place."""


def adapted_attention(model: torch.nn.Module) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """The classes in `model` that have an adapter, as (class, attribute, replacement)."""
    for cls in sorted({type(m) for m in model.modules()}, key=lambda c: c.__name__):
        if cls.__name__ in ADAPTERS:
            yield cls, "forward", ADAPTERS[cls.__name__]
