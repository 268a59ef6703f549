"""Attention modules that compute by hand what transformers' attention interface would express.

An adapter is one method that says the same with the semantic operator, for one class.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from onnxkit.export import disentangled
from onnxkit.export.attention import HookRefused, attention, narrowed
from onnxkit.export.cache import claim
from onnxkit.export.operators import OPS
from onnxkit.export.probes import Replacement

Adapter = tuple[str, Callable[..., Any]]
"""(method, what to trace in its place)."""


def _mpnet_forward(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **other: Any,
) -> tuple[torch.Tensor]:
    """MPNet adds a relative position bias, shared by its layers, to the scores."""
    heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
    q, k, v = (part(hidden_states).view(heads).transpose(1, 2) for part in (self.q, self.k, self.v))
    scale = self.attention_head_size**-0.5
    out = OPS.attention(q, k, v, attention_mask, position_bias, None, scale, 0.0)
    return (self.o(out.reshape(*hidden_states.shape[:-1], -1)),)


def _attn(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """GPT-J's and CodeGen's; `[B,H,S,D]` in and out."""
    out, _ = attention(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5)
    return out.transpose(1, 2), None


def _gpt_neo_attn(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """GPT-Neo does not scale its scores, and every other layer has a window."""
    if self.attention_type == "local":
        attention_mask = narrowed(attention_mask, self.config.window_size)
    out, _ = attention(self, query, key, value, attention_mask, scaling=1.0)
    return out.transpose(1, 2), None


def _bloom_forward(
    self: Any,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    alibi: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layer_past: Any = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """BLOOM adds a bias that is linear in the distance (arXiv:2108.12409); `alibi` is `[B·H,1,T]`."""
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    bias = alibi.view(hidden_states.shape[0], self.num_heads, 1, -1)
    bias = bias if self.beta == 1.0 else bias * self.beta
    out, _ = attention(
        self, query, key, value, attention_mask, scaling=self.inv_norm_factor, position_bias=bias
    )
    return self.dense(out.reshape(*hidden_states.shape[:-1], -1)) + residual, None


def _falcon_forward(
    self: Any,
    hidden_states: torch.Tensor,
    alibi: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    layer_past: Any = None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Falcon fuses its projections in three ways. With ALiBi the mask holds the bias already."""
    heads = _falcon_heads(self, self.query_key_value(hidden_states))
    query, key, value = (x.transpose(1, 2) for x in heads)
    if alibi is None:
        rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
        query, key = rotate(query, key, *(position_embeddings or ()))
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    out, _ = attention(self, query, key, value, attention_mask, scaling=self.inv_norm_factor)
    return self.dense(out.reshape(*hidden_states.shape[:-1], -1)), None


def _falcon_heads(module: Any, fused: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values `[B,S,H,D]`; transformers caches a group's keys once a query head."""
    batch, rows, _ = fused.shape
    size, heads = module.head_dim, module.num_heads
    if not module.new_decoder_architecture and not module.multi_query:
        return list(fused.view(batch, rows, heads, 3, size).unbind(dim=3))
    groups = module.num_kv_heads if module.new_decoder_architecture else 1
    parts = fused.view(batch, rows, groups, heads // groups + 2, size)
    query, key, value = torch.split(parts, [heads // groups, 1, 1], dim=3)
    if module.new_decoder_architecture:
        key, value = key.expand_as(query), value.expand_as(query)
    return [x.flatten(2, 3) for x in (query, key, value)]


def _falcon_alibi(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """ALiBi `[B·H,1,T]`, rounded to bfloat16 as transformers rounds it, whose product in bfloat16 ONNX
    Runtime's CPU provider does not have."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16).to(torch.float32)

    device = attention_mask.device
    power = 2 ** math.floor(math.log2(num_heads))
    steps = torch.arange(1, 1 + power, device=device, dtype=torch.float32)
    slopes = torch.exp2(steps * (-8.0 / power))
    if power != num_heads:
        odd = torch.arange(1, 1 + 2 * (num_heads - power), 2, device=device, dtype=torch.float32)
        slopes = torch.cat([slopes, torch.exp2(odd * (-4.0 / power))])
    places = ((attention_mask.cumsum(dim=-1) - 1) * attention_mask)[:, None, :].to(torch.float32)
    bias = rounded(rounded(slopes)[:, None] * rounded(places))
    return bias.reshape(-1, 1, attention_mask.shape[-1]).to(dtype)


def _mpt_forward(
    self: Any,
    hidden_states: torch.Tensor,
    position_bias: torch.Tensor,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """MPT adds ALiBi `[H,1,longest]` to the scores, of which the last columns count."""
    mixed = self.Wqkv(hidden_states)
    if self.clip_qkv:
        mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    heads = (*hidden_states.shape[:-1], self.n_heads, self.head_dim)
    query, key, value = (x.reshape(heads).transpose(1, 2) for x in mixed.chunk(3, dim=2))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    length = attention_mask.shape[-1] if attention_mask is not None else key.shape[2]
    steps = torch.arange(length, device=key.device, dtype=torch.int64) - (length - 1)
    slopes = -position_bias[:, :, -2:-1]  # the bias of the key before the last, one step away
    bias = (slopes * steps).to(query.dtype)[None]
    out, _ = attention(
        self, query, key, value, attention_mask, scaling=self.softmax_scale, position_bias=bias
    )
    return self.out_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


def _xglm_forward(
    self: Any,
    hidden_states: torch.Tensor,
    key_value_states: torch.Tensor | None = None,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """XGLM's, which only attends to itself."""
    if key_value_states is not None:
        raise HookRefused("a cross-attention that no encoder feeds")
    heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
    projections = (self.q_proj, self.k_proj, self.v_proj)
    query, key, value = (part(hidden_states).view(heads).transpose(1, 2) for part in projections)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    out, _ = attention(self, query, key, value, attention_mask, scaling=self.scaling)
    return self.out_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


def _lilt_forward(
    self: Any,
    hidden_states: torch.Tensor,
    layout_inputs: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LiLT adds the scores of words and of their layout (arXiv:2202.13669), and reads the values of both with
    them: one attention of heads that lie side by side."""

    def heads(name: str) -> list[torch.Tensor]:
        words, layout = getattr(self, name)(hidden_states), getattr(self, f"layout_{name}")(layout_inputs)
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, -1)
        return [x.view(shape) for x in (words, layout)]

    query, key, value = heads("query"), heads("key"), heads("value")
    sizes = [x.shape[-1] for x in value]
    query[1] = query[1] * (sizes[0] / sizes[1]) ** 0.5
    q, k, v = (torch.cat(parts, dim=-1).transpose(1, 2) for parts in (query, key, value))
    out, _ = attention(self, q, k, v, attention_mask, scaling=sizes[0] ** -0.5)
    words, layout = (x.reshape(*hidden_states.shape[:-1], -1) for x in torch.split(out, sizes, dim=-1))
    return words, layout


def _wavlm_attention(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    gated_position_bias: torch.Tensor,
) -> tuple[torch.Tensor, None]:
    """WavLM's, with a bias `[B·H,S,S]` of how far apart two frames are (arXiv:2110.13900)."""
    heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
    projections = (self.q_proj, self.k_proj, self.v_proj)
    query, key, value = (part(hidden_states).view(heads).transpose(1, 2) for part in projections)
    rows = gated_position_bias.shape[-1]
    bias = gated_position_bias.view(hidden_states.shape[0], self.num_heads, rows, rows)
    mask = attention_mask.eq(1)[:, None, None, :] if attention_mask is not None else None
    out, _ = attention(self, query, key, value, mask, scaling=self.scaling, position_bias=bias)
    return self.out_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


def _expand_latents(
    self: Any, latent: torch.Tensor, turned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[B,H,T,…]` of what DeepSeek's attention caches instead (arXiv:2405.04434): latents
    `[B,1,T,R]`, from which each head makes its own, and the part that is turned, which heads share."""
    update = claim(latent)
    if update is not None:
        latent, turned = update.layer.joined(latent, turned)
    sizes = [self.qk_nope_head_dim, self.v_head_dim]
    rows = (latent.shape[0], latent.shape[2], -1, sum(sizes))
    plain, value = self.kv_b_proj(latent).view(rows).transpose(1, 2).split(sizes, dim=-1)
    return torch.cat((plain, turned.expand(-1, plain.shape[1], -1, -1)), dim=-1), value


ADAPTERS: dict[str, Adapter] = {
    "MPNetSelfAttention": ("forward", _mpnet_forward),
    "GPTJAttention": ("_attn", _attn),
    "CodeGenAttention": ("_attn", _attn),
    "GPTNeoSelfAttention": ("_attn", _gpt_neo_attn),
    "BloomAttention": ("forward", _bloom_forward),
    "FalconAttention": ("forward", _falcon_forward),
    "MptAttention": ("forward", _mpt_forward),
    "XGLMAttention": ("forward", _xglm_forward),
    "LiltSelfAttention": ("forward", _lilt_forward),
    "WavLMAttention": ("torch_multi_head_self_attention", _wavlm_attention),
    "modeling_deberta.DisentangledSelfAttention": ("forward", disentangled.attend_first_version),
    "modeling_deberta_v2.DisentangledSelfAttention": ("forward", disentangled.attend),
}
"""Class name of an attention module, with its file where others have the same → what to trace in place of one
of its methods."""


def adapted_attention(model: torch.nn.Module) -> Iterator[Replacement]:
    """The classes in `model` that have an adapter, and a function that one of them needs."""
    for cls in sorted({type(m) for m in model.modules()}, key=lambda c: c.__name__):
        for name in (cls.__name__, f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"):
            if name in ADAPTERS:
                yield cls, *ADAPTERS[name]
        if hasattr(cls, "expand_kv"):
            yield cls, "expand_kv", _expand_latents
        if cls.__name__ == "FalconAttention":
            yield sys.modules[cls.__module__], "build_alibi_tensor", _falcon_alibi
