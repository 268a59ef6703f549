"""Lets a traced model say an attention, a mask, a norm or a rotation as one torch operator of our own each.

Transformers lets attention and mask implementations be registered by name; a model built with
`attn_implementation=IMPLEMENTATION` then calls ours (`attention`). What is a plain function or a class in the
modeling files is replaced while a trace runs (`probes`, `adapters`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, masking_utils
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from onnxkit.export.adapters import adapted_attention
from onnxkit.export.attention import attention, mask
from onnxkit.export.cache import deferred_updates
from onnxkit.export.experts import experts_forward
from onnxkit.export.probes import Replacement, layer_norms, norms, scalars, tanh_gelus
from onnxkit.export.quirks import (
    known_quantiles,
    marked_zeros,
    no_recurrence,
    overflow_guards,
    unpadded_heads,
    whole_lengths,
    whole_position_bias,
)
from onnxkit.export.ropes import scaled_ropes
from onnxkit.export.rotations import rotations

T = TypeVar("T")

IMPLEMENTATION = "onnxkit"


def _replacements(model: PreTrainedModel) -> Iterator[Replacement]:
    yield from scalars()
    yield from tanh_gelus()
    yield from rotations(model)
    yield from norms(model)
    yield from layer_norms(model)
    yield from scaled_ropes(model)
    yield from whole_position_bias(model)
    yield from unpadded_heads(model)
    yield from whole_lengths(model)
    yield from no_recurrence(model)
    yield from known_quantiles(model)
    yield from overflow_guards()
    yield from marked_zeros()
    if model.config._attn_implementation == IMPLEMENTATION:
        yield from adapted_attention(model)


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers."""
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, mask)
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)


@contextlib.contextmanager
def hooked(model: PreTrainedModel) -> Iterator[None]:
    """Within the block `model` speaks in semantic operators (of attention if it has `IMPLEMENTATION`)."""
    with contextlib.ExitStack() as undo:
        if model.config._attn_implementation == IMPLEMENTATION:
            undo.enter_context(deferred_updates())
        for owner, name, replacement in list(_replacements(model)):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def moved(model: PreTrainedModel, where: torch.dtype | str) -> PreTrainedModel:
    """`model.to(where)`, which transformers' annotations do not fit."""
    anywhere: Any = model
    result: PreTrainedModel = anywhere.to(where)
    return result


def run_either_way(model: PreTrainedModel, run: Callable[[], T]) -> T:
    """`run()`, and where the model stumbles over our attention, once more with its own, which it then has.

    Raises:
        Exception: the first failure, where both fail.
    """
    try:
        with torch.no_grad(), hooked(model):
            return run()
    except Exception as error:  # masks and a past that are not what it makes itself: all kinds
        first = error
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    with contextlib.suppress(Exception), torch.no_grad(), hooked(model):
        return run()
    model.config._attn_implementation = before
    raise first


class AttentionCalls:
    """Counts forward calls of attention modules."""

    def __init__(self) -> None:
        self.count = 0

    def called(self, module: torch.nn.Module, inputs: Any) -> None:
        """A forward pre-hook."""
        self.count += 1


@contextlib.contextmanager
def counted_attention(model: torch.nn.Module) -> Iterator[AttentionCalls]:
    """Count, within the block, the calls of `model`'s own attention modules: what a trace must hold.

    An attention module is an innermost one, not torch's, whose class name ends in "Attention".
    """
    calls = AttentionCalls()
    handles = [
        module.register_forward_pre_hook(calls.called)
        for module in model.modules()
        if _is_attention(module) and not any(_is_attention(c) for c in module.modules() if c is not module)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_attention(module: torch.nn.Module) -> bool:
    cls = type(module)
    return cls.__name__.endswith("Attention") and not cls.__module__.startswith("torch.")
