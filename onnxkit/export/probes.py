"""Functions and modules of the modeling files whose meaning is told by trying them on random values.

They are plain functions and classes, copied from model to model with variations; their names promise
nothing. What behaves as the semantic operator does is replaced by it while a trace runs.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, activations

from onnxkit.export.operators import OPS

Replacement = tuple[Any, str, Callable[..., Any]]
"""(owner, attribute, what to put there)."""

_TANH_GELUS = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "AccurateGELUActivation")
_RAISED = (TypeError, RuntimeError, ValueError, AttributeError, IndexError)
"""What a function that means something else may raise."""


def tanh_gelus() -> Iterator[Replacement]:
    """Transformers' spellings of GELU's tanh approximation."""
    for name in _TANH_GELUS:
        if hasattr(activations, name):
            yield getattr(activations, name), "forward", _tanh_gelu


def _tanh_gelu(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def scalars() -> Iterator[Replacement]:
    """`torch.tensor(number, device=meta)`, which would be a constant without content."""
    yield torch, "tensor", _hooked_tensor(torch.tensor)


def _hooked_tensor(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def tensor(data: Any, *more: Any, **options: Any) -> torch.Tensor:
        device = options.get("device")
        if (
            isinstance(data, (bool, int, float))
            and device is not None
            and torch.device(device).type == "meta"
        ):
            dtype = options.get("dtype")
            return torch.full((), data, dtype=dtype or original(data).dtype, device=device)
        return original(data, *more, **options)

    return tensor


def rotations(model: PreTrainedModel) -> Iterator[Replacement]:
    """The rotary functions of the model's files that rotate by halves."""
    for name in sorted({type(module).__module__ for module in model.modules()}):
        source = sys.modules.get(name)
        function = getattr(source, "apply_rotary_pos_emb", None)
        if function is not None and _rotates_by_halves(function, tables=8):
            yield source, "apply_rotary_pos_emb", _hooked_rotation(function, half=False)
        elif function is not None and _rotates_by_halves(function, tables=4):
            yield source, "apply_rotary_pos_emb", _hooked_rotation(function, half=True)


def _rotates_by_halves(function: Callable[..., Any], *, tables: int) -> bool:
    """Compare with x·cos + rotate_half(x)·sin on random values; the tables may be given for one half only."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 3, 8, generator=generator)
    cos, sin = torch.randn(2, 1, 3, tables, generator=generator)
    try:
        rotated = function(q, k, cos, sin)
    except _RAISED:
        return False

    def expected(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
        wide_cos, wide_sin = (t.repeat(1, 1, 8 // tables)[:, None] for t in (cos, sin))
        right: torch.Tensor = x * wide_cos + half * wide_sin
        return right

    if not isinstance(rotated, tuple) or len(rotated) != 2:
        return False
    return all(
        isinstance(r, torch.Tensor) and r.shape == x.shape and torch.allclose(r, expected(x), atol=1e-5)
        for r, x in zip(rotated, (q, k), strict=True)
    )


def _hooked_rotation(original: Callable[..., Any], *, half: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *a: Any, **kw: Any
    ) -> Any:
        width = cos.shape[-1] * (2 if half else 1)
        plain = not a and kw.get("unsqueeze_dim", 1) == 1 and cos.ndim == 3 and width == q.shape[-1]
        if not plain:
            return original(q, k, cos, sin, *a, **kw)
        if half:
            cos, sin = (torch.cat((table, table), dim=-1) for table in (cos, sin))
        return OPS.rotary(q, cos, sin), OPS.rotary(k, cos, sin)

    return rotate


def norms(model: PreTrainedModel) -> Iterator[Replacement]:
    """The classes of the model's root-mean-square norms (arXiv:1910.07467), whatever they are called."""
    by_class: dict[type, torch.nn.Module] = {}
    for module in model.modules():
        by_class.setdefault(type(module), module)
    for cls, module in sorted(by_class.items(), key=lambda item: item[0].__name__):
        offset = _norm_offset(module)
        if offset is not None:
            original: Any = cls
            yield cls, "forward", _hooked_norm(original.forward, offset)


_EPSILONS = ("variance_epsilon", "eps", "epsilon")


def _epsilon(module: torch.nn.Module) -> float | None:
    found = (getattr(module, name, None) for name in _EPSILONS)
    return next((float(value) for value in found if isinstance(value, float)), None)


def _norm_offset(module: torch.nn.Module) -> float | None:
    """o where `module` computes x / √(mean(x²) + ε) · (weight + o), asked of a copy; else None."""
    own = dict(module.named_parameters(recurse=False))
    epsilon = _epsilon(module)
    library = type(module).__module__.startswith("torch.")
    if (
        library
        or set(own) != {"weight"}
        or own["weight"].ndim != 1
        or epsilon is None
        or any(module.children())
    ):
        return None
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 8, generator=generator)[0] * 2 + 0.5, torch.randn(8, generator=generator)
    probe = copy.copy(module)
    probe._parameters = {"weight": torch.nn.Parameter(weight, requires_grad=False)}
    try:
        got = probe(x)
    except _RAISED:
        return None
    if not isinstance(got, torch.Tensor) or got.shape != x.shape:
        return None
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    fitting = (o for o in (0.0, 1.0) if torch.allclose(got, normed * (weight + o), atol=1e-5))
    return next(fitting, None)


def _hooked_norm(original: Callable[..., Any], offset: float) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: Any, hidden_states: torch.Tensor, *more: Any, **other: Any) -> Any:
        if more or other or self.weight is None:
            return original(self, hidden_states, *more, **other)
        return OPS.rms_norm(hidden_states, self.weight, _epsilon(self), offset)

    return forward
