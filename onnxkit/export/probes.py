"""Functions and modules of the modeling files whose meaning is told by trying them on random values.

They are plain functions and classes, copied from model to model with variations; their names promise
nothing. What behaves as the semantic operator does is replaced by it while a trace runs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, activations

from onnxkit.export.operators import OPS

Replacement = tuple[Any, str, Any]
"""(owner, attribute, what to put there)."""

_TANH_GELUS = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "AccurateGELUActivation")
RAISED = (TypeError, RuntimeError, ValueError, AttributeError, IndexError)
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
    for name in ("tensor", "as_tensor"):
        yield torch, name, _hooked_tensor(getattr(torch, name))


def _hooked_tensor(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def tensor(data: Any, *more: Any, **options: Any) -> torch.Tensor:
        device = options.get("device")
        if (
            isinstance(data, (bool, int, float, torch.SymInt))
            and device is not None
            and torch.device(device).type == "meta"
        ):
            kind = torch.int64 if isinstance(data, torch.SymInt) else original(data).dtype
            number: Any = data  # torch's annotation does not know sizes that are symbols
            return torch.full((), number, dtype=options.get("dtype") or kind, device=device)
        return original(data, *more, **options)

    return tensor


def norms(model: PreTrainedModel) -> Iterator[Replacement]:
    """The classes of the model's root-mean-square norms (arXiv:1910.07467), whatever they are called."""
    for cls, modules in _by_class(model):
        weighted = [module for module in modules if getattr(module, "weight", None) is not None]
        offsets = {_norm_offset(module) for module in weighted}
        offset = offsets.pop() if offsets else None
        if offset is not None and not offsets:
            original: Any = cls
            yield cls, "forward", _hooked_norm(original.forward, offset)


def _by_class(model: PreTrainedModel) -> list[tuple[type, list[torch.nn.Module]]]:
    """Modules by their classes, which are replaced as a whole: all of one must do the same."""
    found: dict[type, list[torch.nn.Module]] = {}
    for module in model.modules():
        found.setdefault(type(module), []).append(module)
    return sorted(found.items(), key=lambda item: item[0].__name__)


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
    except RAISED:
        return None
    if not isinstance(got, torch.Tensor) or got.shape != x.shape:
        return None
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    fitting = (o for o in (0.0, 1.0) if torch.allclose(got, normed * (weight + o), atol=1e-5))
    return next(fitting, None)


def layer_norms(model: PreTrainedModel) -> Iterator[Replacement]:
    """The classes of layer norms that a model writes out by hand (DeBERTa's)."""
    for cls, modules in _by_class(model):
        if all(map(_is_layer_norm, modules)):
            yield cls, "forward", _layer_norm


def _is_layer_norm(module: torch.nn.Module) -> bool:
    """Whether `module`, none of torch's, computes torch's layer norm, asked of a copy."""
    own = dict(module.named_parameters(recurse=False))
    epsilon = _epsilon(module)
    plain = set(own) == {"weight", "bias"} and not any(module.children())
    library = isinstance(module, torch.nn.LayerNorm) or type(module).__module__.startswith("torch.")
    if library or not plain or epsilon is None:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, generator=generator) * 2 + 0.5
    given = {name: torch.randn(8, generator=generator) for name in ("weight", "bias")}
    probe = copy.copy(module)
    probe._parameters = {name: torch.nn.Parameter(v, requires_grad=False) for name, v in given.items()}
    try:
        got = probe(x)
    except RAISED:
        return False
    expected = torch.nn.functional.layer_norm(x, (8,), **given, eps=epsilon)
    same_shape = isinstance(got, torch.Tensor) and got.shape == x.shape
    return same_shape and torch.allclose(got, expected, atol=1e-5)


def _layer_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, _epsilon(self) or 0.0)


def _hooked_norm(original: Callable[..., Any], offset: float) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: Any, hidden_states: torch.Tensor, *more: Any, **other: Any) -> Any:
        weight = getattr(self, "weight", None)  # Gemma 3n has some without, of the same class
        if more or other or weight is None:
            return original(self, hidden_states, *more, **other)
        return OPS.rms_norm(hidden_states, weight, _epsilon(self), offset)

    return forward
