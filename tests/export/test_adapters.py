"""What adapters say, against what the modules compute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    DebertaConfig,
    DebertaV2Config,
    DeepseekV3Config,
    Gemma3nTextConfig,
    LiltConfig,
    MptConfig,
    XGLMConfig,
)
from transformers.models.deberta import modeling_deberta
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.lilt import modeling_lilt
from transformers.models.mpt import modeling_mpt
from transformers.models.wavlm import modeling_wavlm
from transformers.models.xglm import modeling_xglm

from onnxkit.export import adapters, attention, disentangled, quirks
from onnxkit.export.cache import GraphCache, deferred_updates

ROWS, BATCH = 6, 2


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """What the semantic operator means."""
    scores = q @ k.transpose(-1, -2) * scale
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(q.dtype).min)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.fixture(autouse=True)
def _operators_with_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, disentangled):
        monkeypatch.setattr(module, "OPS", SimpleNamespace(attention=plain_attention))


def made(module: torch.nn.Module, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return module.eval()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kinds", [["p2c", "c2p"], ["c2p"], []])
@torch.no_grad()
def test_deberta(shared: bool, kinds: list[str]) -> None:
    config = DebertaV2Config(
        hidden_size=32, num_attention_heads=4, relative_attention=bool(kinds), pos_att_type=kinds,
        position_buckets=4, max_position_embeddings=16, share_att_key=shared,
    )  # fmt: skip
    module = made(modeling_deberta_v2.DisentangledSelfAttention(config))
    hidden, places = torch.randn(BATCH, ROWS, 32), torch.randn(8, 32)
    padding = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * ROWS])
    given: dict[str, Any] = {}
    if kinds:
        given["relative_pos"] = modeling_deberta_v2.build_relative_position(hidden, hidden, 4, 16)
        given["rel_embeddings"] = places
    square = padding[:, None, None, :] * padding[:, None, :, None]
    expected, _ = module(hidden, square, **given)
    got, _ = disentangled.attend(module, hidden, square, **given)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("longest", [4, ROWS, 16])
@pytest.mark.parametrize("kinds", [["p2c", "c2p"], ["p2c"], []])
@torch.no_grad()
def test_deberta_of_the_first_version(longest: int, kinds: list[str]) -> None:
    config = DebertaConfig(
        hidden_size=32, num_attention_heads=4, relative_attention=bool(kinds), pos_att_type=kinds,
        max_position_embeddings=longest,
    )  # fmt: skip
    module = made(modeling_deberta.DisentangledSelfAttention(config))
    hidden, places = torch.randn(BATCH, ROWS, 32), torch.randn(2 * longest, 32)
    padding = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * ROWS])
    given: dict[str, Any] = {}
    if kinds:
        given["relative_pos"] = modeling_deberta.build_relative_position(hidden, hidden)
        given["rel_embeddings"] = places
    square = padding[:, None, None, :] * padding[:, None, :, None]
    expected, _ = module(hidden, square, **given)
    got, _ = disentangled.attend_first_version(module, hidden, square, **given)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_lilt() -> None:
    config = LiltConfig(hidden_size=48, num_attention_heads=4, channel_shrink_ratio=4)
    module = made(modeling_lilt.LiltSelfAttention(config))
    words, layout = torch.randn(BATCH, ROWS, 48), torch.randn(BATCH, ROWS, 12)
    may = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * ROWS], dtype=torch.bool)[:, None, None, :]
    additive = torch.zeros(may.shape).masked_fill(~may, torch.finfo(torch.float32).min)
    expected = module(words, layout, additive)
    got = adapters._lilt_forward(module, words, layout, may)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_wavlm() -> None:
    module = made(modeling_wavlm.WavLMAttention(32, 4))
    hidden, bias = torch.randn(BATCH, ROWS, 32), torch.randn(BATCH * 4, ROWS, ROWS)
    padding = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * ROWS])
    for mask in (padding, None):
        expected, _ = module.torch_multi_head_self_attention(hidden, mask, bias)
        got, _ = adapters._wavlm_attention(module, hidden, mask, bias)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_largest_activations_of_a_normal_distribution() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": [64], "num_hidden_layers": 1}
    config = Gemma3nTextConfig(**sizes, activation_sparsity_pattern=[0.9])
    module = modeling_gemma3n.Gemma3nTextMLP(config)
    x = torch.randn(BATCH, ROWS, 64)
    torch.testing.assert_close(quirks._largest(module, x), module._gaussian_topk(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_latents_join_their_past() -> None:
    config = DeepseekV3Config(
        hidden_size=32, num_attention_heads=4, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16,
        v_head_dim=12, q_lora_rank=16,
    )  # fmt: skip
    module = made(modeling_deepseek_v3.DeepseekV3Attention(config, 0))
    latent, turned = torch.randn(BATCH, 1, ROWS, 16), torch.randn(BATCH, 1, ROWS, 8)
    expected = module.expand_kv(latent, turned)
    for got in (adapters._expand_latents(module, latent, turned), _in_two_steps(module, latent, turned)):
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)


def _in_two_steps(module: Any, latent: torch.Tensor, turned: torch.Tensor) -> Any:
    cache = GraphCache([(latent[:, :, :4], turned[:, :, :4])])
    new = (latent[:, :, 4:].clone(), turned[:, :, 4:].clone())
    with deferred_updates():
        got = adapters._expand_latents(module, *cache.update(*new, 0))
    torch.testing.assert_close(cache.present(0), (latent, turned))
    return got


def triangle() -> torch.Tensor:
    return torch.ones(BATCH, 1, ROWS, ROWS, dtype=torch.bool).tril()


@torch.no_grad()
def test_mpt() -> None:
    config = MptConfig(d_model=32, n_heads=4, max_seq_len=9)
    module, hidden = made(modeling_mpt.MptAttention(config, 0)), torch.randn(BATCH, ROWS, 32)
    alibi = modeling_mpt.build_mpt_alibi_tensor(4, config.max_seq_len)
    masked = ~triangle()
    expected, _ = module(hidden, alibi, None, masked)
    got, _ = adapters._mpt_forward(module, hidden, alibi, None, triangle())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_xglm() -> None:
    config = XGLMConfig(d_model=32, attention_heads=4, num_layers=1, ffn_dim=32, vocab_size=32)
    module = made(modeling_xglm.XGLMAttention(config.d_model, config.attention_heads, layer_idx=0))
    hidden = torch.randn(BATCH, ROWS, 32)
    additive = torch.zeros(BATCH, 1, ROWS, ROWS).masked_fill(~triangle(), torch.finfo(torch.float32).min)
    expected = module(hidden, attention_mask=additive)[0]
    got, _ = adapters._xglm_forward(module, hidden, attention_mask=triangle())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
