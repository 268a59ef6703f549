"""What the hooks read out of mask functions, norms and caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import masking_utils
from transformers.models.cohere import modeling_cohere
from transformers.models.convnext import modeling_convnext
from transformers.models.deberta import modeling_deberta
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.glm import modeling_glm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.llama4 import modeling_llama4
from transformers.models.mobilebert import modeling_mobilebert
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.t5 import modeling_t5

from onnxkit.export.attention import HookRefused, _shape_of, attention, mask, narrowed
from onnxkit.export.cache import GraphCache, claim, deferred_updates
from onnxkit.export.hooks import IMPLEMENTATION, register, run_either_way
from onnxkit.export.probes import _is_layer_norm, _norm_offset
from onnxkit.export.rotations import convention_of, with_complex_tables, with_one, with_sines_first
from tests import tiny_settings as tiny


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


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (modeling_deberta.DebertaLayerNorm(32), True),
        (modeling_convnext.ConvNextLayerNorm(32), False),  # torch's own, where it is no other
        (modeling_mobilebert.NoNorm(32), False),
        (torch.nn.GroupNorm(1, 32), False),
        (modeling_llama.LlamaRMSNorm(32), False),
        (torch.nn.LayerNorm(32), False),
        (torch.nn.BatchNorm1d(32), False),
    ],
)
def test_layer_norms_are_told_by_what_they_compute(module: torch.nn.Module, told: bool) -> None:
    assert _is_layer_norm(module.to("meta")) == told


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


def test_a_deferred_update_is_claimed_by_its_key() -> None:
    one = cache()
    key, value = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    with deferred_updates():
        got = one.update(key, value, 1)
        assert got == (key, value)
        assert claim(key.clone()) is None
        update = claim(key)
        assert update is not None
        assert update.layer is one.layers[1]
        assert update.layer.present is None
    assert claim(key) is None


def test_a_layer_that_hands_on_the_keys_of_another_attends_to_its_present() -> None:
    """Gemma 3n's and 4's last layers have no keys of their own."""
    one = cache()
    query, key, value = torch.randn(3, 2, 2, 3, 8, device="meta")
    one.own[0].past = (torch.empty(2, 2, 4, 8, device="meta"),) * 2
    with deferred_updates():
        one.update(key, value, 0)
        attention(torch.nn.Module(), query, key, value, None, is_causal=False)
        present = one.present(0)
        assert present[0].shape == (2, 2, 7, 8)
        out, _ = attention(torch.nn.Module(), query, key, value, None, is_causal=False)
        assert out.shape == (2, 3, 2, 8)
        assert one.present(0) is present


def test_values_changed_on_the_way_are_refused() -> None:
    one = cache()
    query, key, value = torch.randn(3, 2, 2, 3, 8, device="meta")
    with deferred_updates():
        one.update(key, value, 0)
        with pytest.raises(HookRefused, match="between cache and attention"):
            attention(torch.nn.Module(), query, key, value * 2, None, is_causal=False)


def test_a_mask_that_is_not_understood_is_refused_when_it_is_read() -> None:
    """Qwen2-MoE makes a mask of a window of 0, which none of its layers takes."""
    strange = masking_utils.sliding_window_causal_mask_function(0)
    padding = torch.ones(2, 3, dtype=torch.bool, device="meta")
    unread = mask(
        batch_size=2, q_length=3, kv_length=3, mask_function=strange, attention_mask=padding, local_size=0
    )  # fmt: skip
    query, key, value = torch.randn(3, 2, 2, 3, 8, device="meta")
    with pytest.raises(HookRefused, match="neither causal nor bidirectional"):
        attention(torch.nn.Module(), query, key, value, unread, is_causal=False)
    with pytest.raises(HookRefused):
        narrowed(unread, 4)


def test_a_model_that_stumbles_over_our_attention_gets_its_own() -> None:
    register()
    config = transformers.BertConfig(**tiny.TEXT)
    model = transformers.BertModel._from_config(config, attn_implementation=IMPLEMENTATION).eval()
    asked = []

    def run(stumbles_over: tuple[str, ...]) -> str:
        asked.append(model.config._attn_implementation)
        if asked[-1] in stumbles_over:
            raise ValueError(f"no {asked[-1]}")
        return asked[-1]

    assert run_either_way(model, lambda: run(())) == IMPLEMENTATION
    with pytest.raises(ValueError, match=f"no {IMPLEMENTATION}"):
        run_either_way(model, lambda: run((IMPLEMENTATION, "eager")))
    assert model.config._attn_implementation == IMPLEMENTATION
    assert run_either_way(model, lambda: run((IMPLEMENTATION,))) == "eager"
    assert model.config._attn_implementation == "eager"


def rotary_functions() -> list[Any]:
    """(modeling file, function, interleaved, the tables are half as wide)."""
    return [
        (modeling_llama, "apply_rotary_pos_emb", False, False),
        (modeling_gpt_oss, "apply_rotary_pos_emb", False, True),
        (modeling_cohere, "apply_rotary_pos_emb", True, False),
        (modeling_glm, "apply_rotary_pos_emb", True, False),
        (modeling_gptj, "apply_rotary_pos_emb", True, True),
        (modeling_gemma3n, "apply_rotary_pos_emb", False, False),
        (modeling_gpt_neox, "apply_rotary_pos_emb", False, False),
        (modeling_deepseek_v3, "apply_rotary_pos_emb_interleave", False, False),
    ]


@pytest.mark.parametrize(("module", "name", "interleaved", "narrow"), rotary_functions())
def test_rotations_are_told_by_what_they_compute(
    module: Any, name: str, interleaved: bool, narrow: bool
) -> None:
    function = getattr(module, name)
    found = convention_of(function) or convention_of(with_one(function))
    found = found or convention_of(with_sines_first(function))
    assert found is not None
    assert (found.interleaved, found.narrow) == (interleaved, narrow)
    assert found.sorts == name.endswith("interleave")
    assert convention_of(lambda q, k, cos, sin: (q * cos, k * sin)) is None


@pytest.mark.parametrize(("module", "axis"), [(modeling_deepseek_v2, 1), (modeling_llama4, 2)])
def test_rotations_by_complex_numbers(module: Any, axis: int) -> None:
    function = module.apply_rotary_emb
    assert convention_of(function) is None
    found = convention_of(with_complex_tables(function, axis))
    assert found is not None
    assert (found.interleaved, found.narrow, found.sorts) == (True, True, False)
    assert convention_of(with_complex_tables(function, 3 - axis)) is None


@pytest.mark.parametrize("module", [modeling_gpt_neox, modeling_glm])
def test_a_rotation_of_part_of_a_head_is_told(module: Any) -> None:
    function = module.apply_rotary_pos_emb
    assert convention_of(function, partial=True) == convention_of(function)
    assert convention_of(modeling_llama.apply_rotary_pos_emb, partial=True) is None


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
