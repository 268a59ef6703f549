"""The cache of keys and values as a graph has it: past in, present out.

Transformers' models call `update` on a cache and hand what it returns to their attention. In eager
PyTorch, and where a model computes its attention by hand, that is past and new keys, concatenated. In a
trace with hooks it is the new keys alone: the attention hook that meets them asks here for the past that
belongs to them, and one operator says all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import cache_utils


@dataclass(frozen=True, kw_only=True)
class Update:
    """One layer's new keys and values on their way to an attention hook."""

    layer: GraphLayer
    key: torch.Tensor
    value: torch.Tensor


_pending: ContextVar[dict[int, Update] | None] = ContextVar("pending cache updates", default=None)
"""Updates by the identity of the key tensor that they returned; None: caches concatenate."""


@contextlib.contextmanager
def deferred_updates() -> Iterator[None]:
    """Within the block caches return new keys alone and leave the rest to the attention hook."""
    token = _pending.set({})
    try:
        yield
    finally:
        _pending.reset(token)


def claim(key: torch.Tensor) -> Update | None:
    """The update that returned this very tensor, for the attention hook, which now answers for it.

    A later layer may hand on keys of an earlier one: the update's layer then has its `present` already.
    """
    return (_pending.get() or {}).get(id(key))


class GraphLayer(cache_utils.CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a `GraphCache`. Keys and values are `[batch, heads, length, size]`."""

    is_sliding = False
    is_compileable = False

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = key
        self.values: torch.Tensor = value
        self.past = (key, value)
        self.present: tuple[torch.Tensor, torch.Tensor] | None = None
        self.is_initialized = True
        self.dtype, self.device = key.dtype, key.device

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the past is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Concatenate, or (`deferred_updates`) hand the new ones on."""
        pending = _pending.get()
        if pending is not None:
            pending[id(key_states)] = Update(layer=self, key=key_states, value=value_states)
            return key_states, value_states
        self.keys, self.values = self.joined(key_states, value_states)
        return self.keys, self.values

    def joined(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Past and new ones, concatenated: the layer's present."""
        old_key, old_value = self.past
        self.present = (torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2))
        return self.present

    def get_seq_length(self) -> int:
        """Number of keys so far, a symbol in a trace."""
        return self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys after `query_length` new ones, and the first one's slot."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class GraphCache(cache_utils.Cache):
    """A cache around the past of a graph's inputs; windows are the masks' affair, every layer keeps all."""

    def __init__(self, past: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.own = [GraphLayer(key, value) for key, value in past]
        super().__init__(layers=[*self.own])

    def present(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values after the model has run, `[batch, heads, past + new, size]`.

        Raises:
            LookupError: the layer's attention never met the cache.
        """
        found = self.own[layer].present
        if found is None:
            raise LookupError(f"layer {layer} computes its attention by hand")
        return found
