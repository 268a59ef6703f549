"""What models ask of values or lengths that a trace does not have, answered while it runs."""

from __future__ import annotations

import inspect
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from onnxkit.export.probes import Replacement

_RECURRENT_MASK = "create_recurrent_attention_mask"


def whole_position_bias(model: torch.nn.Module) -> Iterator[Replacement]:
    """T5's decoders count keys after the cache was updated; in a trace the cache hands back new ones only."""
    for cls in sorted({type(module) for module in model.modules()}, key=lambda each: each.__name__):
        original = getattr(cls, "compute_bias", None)
        if original is not None and "past_seen_tokens" in inspect.signature(original).parameters:
            yield cls, "compute_bias", _over_the_past(original)


def _over_the_past(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def compute_bias(
        self: Any, query_length: Any, key_length: Any, device: Any = None, past_seen_tokens: Any = 0
    ) -> torch.Tensor:
        keys = query_length + past_seen_tokens if self.is_decoder else key_length
        return original(self, query_length, keys, device=device, past_seen_tokens=past_seen_tokens)

    return compute_bias


def marked_zeros() -> Iterator[Replacement]:
    """T5's cross-attention hands its scores a bias of zeros: `no_bias` knows it by the mark it gets here."""
    original = torch.zeros

    def zeros(*args: Any, **named: Any) -> torch.Tensor:
        made: Any = original(*args, **named)
        made.onnxkit_zeros = True
        return made  # type: ignore[no-any-return]

    yield torch, "zeros", zeros


def no_bias(bias: torch.Tensor | None) -> bool:
    """Whether a position bias adds nothing."""
    return bias is None or getattr(bias, "onnxkit_zeros", False)


def unpadded_heads(model: torch.nn.Module) -> Iterator[Replacement]:
    """Moonshine pads its heads with zeros for kernels of round sizes, which changes no result: here not."""
    for module in model.modules():
        if getattr(module, "head_dim_padding", 0):
            yield module, "head_dim_padding", 0


def whole_lengths(model: torch.nn.Module) -> Iterator[Replacement]:
    """Moonshine counts its encoder's frames in floats, which a trace would take for constants."""
    for cls in {type(module) for module in model.modules()}:
        if cls.__name__ == "MoonshineEncoder":
            yield cls, "_get_feat_extract_output_lengths", _frames


def _frames(self: Any, length: Any) -> Any:
    for layer in (self.conv1, self.conv2, self.conv3):
        length = (length - layer.kernel_size[0]) // layer.stride[0] + 1
    return length


def no_recurrence(model: PreTrainedModel) -> Iterator[Replacement]:
    """Hybrid models whose layers all attend (Granite 4's) make the mask of recurrent layers, too, which asks
    for values and which nobody takes."""
    layers = set(getattr(model.config, "layer_types", None) or ())
    if layers and layers <= {"attention", "full_attention", "sliding_attention"}:
        module = sys.modules[type(model).__module__]
        if hasattr(module, _RECURRENT_MASK):
            yield module, _RECURRENT_MASK, _no_mask


def _no_mask(*args: Any, **named: Any) -> None:
    return None


def known_quantiles(model: torch.nn.Module) -> Iterator[Replacement]:
    """Gemma 3n keeps the largest activations, asking for a quantile of the normal distribution, which no ONNX
    operator computes: it is a number."""
    for cls in {type(module) for module in model.modules()}:
        if hasattr(cls, "_gaussian_topk"):
            yield cls, "_gaussian_topk", _largest


def _largest(self: Any, x: torch.Tensor) -> torch.Tensor:
    """What of x `[…,N]` is over mean + quantile·standard deviation, as if it were normally distributed."""
    by = statistics.NormalDist().inv_cdf(float(self.activation_sparsity))
    mean = x.mean(dim=-1, keepdim=True)
    spread = (x - mean).square().mean(dim=-1, keepdim=True).sqrt()
    return torch.relu(x - (mean + spread * by))


class _Unknown:
    """Stands for the finiteness of values that a trace does not have; models ask for `.all()`."""

    def all(self) -> bool:
        """No: a model then limits the values, which changes none that is finite."""
        return False


def overflow_guards() -> Iterator[Replacement]:
    """Float16 models ask in mid-run whether anything has overflowed, and clamp it: a trace always clamps."""
    original = torch.isfinite

    def isfinite(x: torch.Tensor) -> torch.Tensor | _Unknown:
        return _Unknown() if x.dtype == torch.float16 and x.is_meta else original(x)

    yield torch, "isfinite", isfinite
