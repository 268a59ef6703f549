"""What a traced model says at an attention, a mask or a rotation: one torch operator of our own each.

Transformers lets attention and mask implementations be registered by name; a model built with
`attn_implementation=IMPLEMENTATION` then calls ours. The operators have shapes but no values: they
exist for the trace only. Rotations are plain functions in the modeling files; they are replaced
while a trace runs, and only where a numeric probe shows that they rotate by halves.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel, activations, masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "onnxkit"
_FAR = 1 << 20
"""Farther than any window that is not named."""

_library: Any = torch.library.Library("onnxkit", "DEF")  # type: ignore[no-untyped-call]
_library.define("attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? bias, float scale) -> Tensor")
_library.define(
    "mask(Tensor? padding, SymInt batch, SymInt queries, SymInt keys, int window, bool causal) -> Tensor"
)
_library.define("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor")
OPS = torch.ops.onnxkit


class HookRefused(Exception):
    """A call whose meaning the semantic operators cannot express: the trace is given up."""


def _attention_shape(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, bias: Any, scale: float
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


def _mask_shape(
    padding: torch.Tensor | None, batch: Any, queries: Any, keys: Any, window: int, causal: bool
) -> torch.Tensor:
    rows = queries if window or causal else 1
    if padding is None:
        return torch.empty(1, 1, rows, keys, dtype=torch.bool, device="meta")
    return torch.empty(batch, 1, rows, keys, dtype=torch.bool, device=padding.device)


def _rotary_shape(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


for _name, _shape in (("attention", _attention_shape), ("mask", _mask_shape), ("rotary", _rotary_shape)):
    torch.library.register_fake(f"onnxkit::{_name}")(_shape)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: `[B,H,S,D]` in, `[B,S,H,Dv]` out; a mask may be additive, too."""
    for name in ("softcap", "s_aux", "head_mask"):
        if other.get(name) is not None:
            raise HookRefused(f"attention with {name}")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if attention_mask is None and causal:
        rows, keys = query.shape[2], key.shape[2]
        attention_mask = OPS.mask(None, query.shape[0], rows, keys, 0, True)
    mask, bias = attention_mask, position_bias
    if mask is not None and mask.dtype != torch.bool:
        bias = mask if bias is None else mask + bias
        mask = None
    return OPS.attention(query, key, value, mask, bias, scale), None


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
    """Transformers' mask interface: padding, causal and sliding-window masks; others are refused."""
    causal, window = _shape_of(mask_function, int(local_size or 0))
    if attention_mask is None and not causal and not window:
        return None
    result: torch.Tensor = OPS.mask(attention_mask, batch_size, q_length, kv_length, window, causal)
    return result


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


def _tanh_gelu(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


_TANH_GELUS = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "AccurateGELUActivation")


def _rotates_by_halves(function: Callable[..., Any]) -> bool:
    """Compare with x·cos + rotate_half(x)·sin on random values."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 3, 8, generator=generator)
    cos, sin = torch.randn(2, 1, 3, 8, generator=generator)
    try:
        rotated = function(q, k, cos, sin)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False

    def expected(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
        right: torch.Tensor = x * cos[:, None] + half * sin[:, None]
        return right

    if not isinstance(rotated, tuple) or len(rotated) != 2:
        return False
    return all(
        isinstance(r, torch.Tensor) and r.shape == x.shape and torch.allclose(r, expected(x), atol=1e-5)
        for r, x in zip(rotated, (q, k), strict=True)
    )


def _hooked_rotation(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *a: Any, **kw: Any
    ) -> Any:
        plain = not a and kw.get("unsqueeze_dim", 1) == 1 and cos.ndim == 3 and cos.shape[-1] == q.shape[-1]
        if not plain:
            return original(q, k, cos, sin, *a, **kw)
        return OPS.rotary(q, cos, sin), OPS.rotary(k, cos, sin)

    return rotate


def _rotations(model: PreTrainedModel) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    for name in sorted({type(module).__module__ for module in model.modules()}):
        source = sys.modules.get(name)
        function = getattr(source, "apply_rotary_pos_emb", None)
        if function is not None and _rotates_by_halves(function):
            yield source, "apply_rotary_pos_emb", _hooked_rotation(function)


def _replacements(model: PreTrainedModel) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    from onnxkit.export.adapters import adapted_attention

    for name in _TANH_GELUS:
        if hasattr(activations, name):
            yield getattr(activations, name), "forward", _tanh_gelu
    yield from _rotations(model)
    yield from adapted_attention(model)


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers."""
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, mask)


@contextlib.contextmanager
def hooked(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, `model` (built with `IMPLEMENTATION`) speaks in semantic operators."""
    with contextlib.ExitStack() as undo:
        for owner, name, replacement in list(_replacements(model)):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def moved(model: PreTrainedModel, where: torch.dtype | str) -> PreTrainedModel:
    """`model.to(where)`, which transformers' annotations do not fit."""
    anywhere: Any = model
    result: PreTrainedModel = anywhere.to(where)
    return result


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
