"""Transformers' interfaces of attention and masks, said in our operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from onnxkit.export.cache import claim
from onnxkit.export.operators import OPS
from onnxkit.export.quirks import no_bias

_FAR = 1 << 20
"""Farther than any window that is not named."""


class HookRefused(Exception):
    """A call whose meaning the semantic operators cannot express: the trace is given up."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: `[B,H,S,D]` in, `[B,S,H,Dv]` out; a mask may be additive, too.

    Keys that come from a `GraphCache` are joined to their past. `s_aux` `[H]` are learned scores of no key
    (sinks), `softcap` c bounds the scores by c·tanh(score/c).
    """
    if other.get("head_mask") is not None:
        raise HookRefused("attention with head_mask")
    if hasattr(attention_mask, "onnxkit_refusal"):
        raise attention_mask.onnxkit_refusal  # type: ignore[union-attr]
    update = claim(key)
    if update is not None and update.layer.present is not None:
        (key, value), update = update.layer.present, None
    past = update.layer.past if update is not None else None
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if attention_mask is None and causal:
        rows, keys = query.shape[2], key.shape[2] + (past[0].shape[2] if past is not None else 0)
        attention_mask = OPS.mask(None, query.shape[0], rows, keys, 0, True)
    mask, bias = attention_mask, None if no_bias(position_bias) else position_bias
    if mask is not None and mask.dtype != torch.bool:
        bias = mask if bias is None else mask + bias
        mask = None
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    said = (mask, bias, s_aux, scale, float(softcap or 0.0))
    if update is None:
        return OPS.attention(query, key, value, *said), None
    if update.value is not value:
        raise HookRefused("values that the model changes between cache and attention")
    out, *present = OPS.cached_attention(query, key, value, *update.layer.past, *said)
    update.layer.present = (present[0], present[1])
    return out, None


def mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., bool],
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **other: Any,
) -> torch.Tensor | None:
    """Transformers' mask interface: padding, causal and sliding-window masks; others are refused when an
    attention reads them (Qwen2-MoE makes a mask of no window that none of its layers takes)."""
    sizes = (attention_mask, batch_size, q_length, kv_length)
    try:
        causal, window = _shape_of(mask_function, int(local_size or 0))
    except HookRefused as refusal:
        unknown = _said_mask(sizes, 0, True)
        unknown.onnxkit_refusal = refusal  # type: ignore[attr-defined]
        return unknown
    if attention_mask is None and not causal and not window:
        return None
    return _said_mask(sizes, window, causal)


def _said_mask(sizes: tuple[Any, Any, Any, Any], window: int, causal: bool) -> torch.Tensor:
    result: Any = OPS.mask(*sizes, window, causal)
    result.onnxkit_mask = sizes
    said: torch.Tensor = result
    return said


def narrowed(mask: Any, window: int) -> torch.Tensor:
    """A causal mask of ours with a window laid over it."""
    if not hasattr(mask, "onnxkit_mask") or hasattr(mask, "onnxkit_refusal"):
        raise HookRefused("a window over a mask of the model's own making")
    return _said_mask(mask.onnxkit_mask, window, True)


def _shape_of(mask_function: Callable[..., Any], local_size: int) -> tuple[bool, int]:
    """Ask the function itself, outside the trace, whether it is causal and how wide its window is (0: none).

    It is index arithmetic on scalar tensors; a model may have laid something of its own over it.
    """
    with _disable_current_modes():

        def looks(query: int, key: int) -> bool:
            try:
                return bool(mask_function(*(torch.tensor(i) for i in (0, 0, query, key))))
            except Exception as error:  # it reads more than indices, tensors of the trace for one
                raise HookRefused("a mask with an overlay of the model's own") from error

        causal = not looks(0, 1)
        if not local_size:
            if not looks(1, 0) or not looks(_FAR, 0) or looks(0, _FAR) == causal:
                raise HookRefused("a mask that is neither causal nor bidirectional")
            return causal, 0
        # The farthest key: a window may count the query itself, or not.
        reach = next((d for d in (local_size - 1, local_size) if looks(d, 0) and not looks(d + 1, 0)), None)
        if reach is None or not (causal or (reach and looks(0, reach) and not looks(0, reach + 1))):
            raise HookRefused("a window that ends elsewhere than the configuration says")
        return causal, reach + 1 if causal else reach
