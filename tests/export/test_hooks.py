"""What the hooks read out of mask functions, norms and caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import masking_utils
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.t5 import modeling_t5

from onnxkit.export.cache import GraphCache, claim, deferred_updates
from onnxkit.export.hooks import HookRefused, _shape_of, attention, mask, narrowed
from onnxkit.export.probes import _norm_offset


def overlay(reach: int) -> Callable[..., Any]:
    """A causal window of `reach` with the other side laid over it, as Gemma 3's embedding models have it."""
    return masking_utils.or_masks(
        masking_utils.sliding_window_causal_mask_function(reach),
        lambda batch, head, query, key: abs(query - key) < reach,
    )


def always(*indices: Any) -> torch.Tensor:
    return torch.tensor(True)


@pytest.mark.parametrize(
    ("function", "local_size", "expected"),
    [
        (masking_utils.causal_mask_function, None, (True, 0)),
        (always, None, (False, 0)),
        (masking_utils.or_masks(masking_utils.causal_mask_function, always), None, (False, 0)),
        (masking_utils.sliding_window_causal_mask_function(6), 6, (True, 6)),
        (masking_utils.sliding_window_causal_mask_function(1), 1, (True, 1)),
        (overlay(4), 4, (False, 3)),
        (lambda batch, head, query, key: abs(query - key) <= 4, 4, (False, 4)),
    ],
)
def test_shapes(function: Callable[..., Any], local_size: int | None, expected: tuple[bool, int]) -> None:
    assert _shape_of(function, local_size or 0) == expected


@pytest.mark.parametrize(
    ("function", "local_size"),
    [
        (masking_utils.sliding_window_causal_mask_function(6), None),
        (masking_utils.sliding_window_causal_mask_function(6), 9),
        (lambda batch, head, query, key: (query // 4 == key // 4) & (key <= query), None),
        (lambda batch, head, query, key: key >= query, None),
        (lambda batch, head, query, key: torch.empty(9, device="meta")[key] == 1, None),
        (lambda batch, head, query, key: (query - key < 3) & (key - query < 2), 3),
    ],
)
def test_others_are_refused(function: Callable[..., Any], local_size: int | None) -> None:
    with pytest.raises(HookRefused):
        _shape_of(function, local_size or 0)


class Scaled(torch.nn.Module):
    """Like a root-mean-square norm in all but the formula."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32))
        self.eps, self.kind = 1e-6, kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "centered":
            x = x - x.mean(-1, keepdim=True)
        length = x.norm(dim=-1, keepdim=True)
        norm = length if self.kind == "length" else length / x.shape[-1] ** 0.5
        return x / norm * (self.weight if self.kind != "squared" else self.weight**2)


@pytest.mark.parametrize(
    ("module", "offset"),
    [
        (modeling_llama.LlamaRMSNorm(32), 0.0),
        (modeling_qwen3.Qwen3RMSNorm(32), 0.0),
        (modeling_olmo2.Olmo2RMSNorm(32), 0.0),
        (modeling_t5.T5LayerNorm(32), 0.0),
        (modeling_gemma2.Gemma2RMSNorm(32), 1.0),
        (modeling_gemma3.Gemma3RMSNorm(32), 1.0),
        (torch.nn.RMSNorm(32), None),
        (torch.nn.LayerNorm(32), None),
        (Scaled("centered"), None),
        (Scaled("length"), None),
        (Scaled("squared"), None),
    ],
)
def test_norms_are_told_by_what_they_compute(module: torch.nn.Module, offset: float | None) -> None:
    assert _norm_offset(module.to("meta")) == offset


def cache(past: int = 4) -> GraphCache:
    return GraphCache([(torch.randn(2, 2, past, 8), torch.randn(2, 2, past, 8)) for _ in range(2)])


def test_a_cache_in_pytorch_concatenates() -> None:
    one = cache()
    key, value = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    before = one.layers[1].keys
    got = one.update(key, value, 1)
    assert one.get_seq_length(0) == 4
    assert one.get_mask_sizes(3, 0) == (7, 0)
    torch.testing.assert_close(got[0], torch.cat([before, key], dim=2))
    assert one.present(1)[0] is got[0]
    with pytest.raises(LookupError, match="layer 0"):
        one.present(0)


def test_a_deferred_update_is_claimed_once_and_by_its_key() -> None:
    one = cache()
    key, value = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    with deferred_updates():
        got = one.update(key, value, 1)
        assert got == (key, value)
        assert claim(key.clone()) is None
        update = claim(key)
        assert update is not None
        assert update.layer is one.layers[1]
        assert claim(key) is None
    assert claim(key) is None


def test_values_changed_on_the_way_are_refused() -> None:
    one = cache()
    query, key, value = torch.randn(3, 2, 2, 3, 8, device="meta")
    with deferred_updates():
        one.update(key, value, 0)
        with pytest.raises(HookRefused, match="between cache and attention"):
            attention(torch.nn.Module(), query, key, value * 2, None, is_causal=False)


def test_a_window_laid_over_a_mask() -> None:
    padding = torch.ones(2, 7, dtype=torch.bool, device="meta")
    full = mask(
        batch_size=2, q_length=3, kv_length=7, mask_function=masking_utils.causal_mask_function,
        attention_mask=padding,
    )  # fmt: skip
    assert full is not None
    assert full.shape == (2, 1, 3, 7)
    assert narrowed(full, 4).shape == (2, 1, 3, 7)
    with pytest.raises(HookRefused, match="of the model's own making"):
        narrowed(torch.ones(2, 1, 3, 7, dtype=torch.bool), 4)
