"""Tiny GGUF files as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS, HEAD, LAYERS, WIDTH = 4, 2, 8, 2, 32
PIECES = [*map(chr, (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))), "ab", "abc"]
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    "model.layers": "blk",
}  # fmt: skip


def llama(width: int = WIDTH, *, tied: bool = False) -> LlamaForCausalLM:
    """A model whose rows are `width` weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, num_hidden_layers=LAYERS, num_attention_heads=HEADS, head_dim=HEAD,
            num_key_value_heads=KV_HEADS, intermediate_size=2 * width, vocab_size=len(PIECES) + 2,
            eos_token_id=1, bos_token_id=0, max_position_embeddings=64, rms_norm_eps=1e-5,
            initializer_range=0.2, tie_word_embeddings=tied,
        )
    ).eval()  # fmt: skip


def quantize(array: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Rows of bytes; of the K formats, which gguf's Python only reads, random ones with small scales."""
    widths = {GGMLQuantizationType.Q4_K: (144, (0, 2)), GGMLQuantizationType.Q6_K: (210, (208,))}
    if kind not in widths:
        return quants.quantize(array, kind)
    width, scales = widths[kind]
    rng = np.random.default_rng(array.size)
    made = rng.integers(0, 256, (array.size // 256, width), dtype=np.uint8)
    for at in scales:
        made[:, at : at + 2] = rng.uniform(1e-4, 4e-4, (len(made), 1)).astype(np.float16).view(np.uint8)
    return made.reshape(len(array), -1)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotated projection in llama.cpp's order: pairs beside each other, not in halves."""
    return weight.reshape(heads, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path,
    model: LlamaForCausalLM,
    *,
    kind: GGMLQuantizationType | Callable[[str], GGMLQuantizationType],
    rotary: bool = False,
    merges: Sequence[str] = ("a b", "ab c"),
) -> Path:
    """Write a file; `kind` is every matrix's format, or tells it from the tensor's name."""
    width = model.config.hidden_size
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(PIECES) + 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *PIECES])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        array, own = tensor.numpy(), name.removesuffix(".weight")
        for theirs, mine in _NAMES.items():
            own = own.replace(theirs, mine)
        if "attn_q" in own or "attn_k" in own:
            array = _interleaved(array, HEADS if "attn_q" in own else KV_HEADS)
        if own == "output" and model.config.tie_word_embeddings:
            continue
        if array.ndim == 1:
            writer.add_tensor(f"{own}.weight", array)
        else:
            form = kind if isinstance(kind, GGMLQuantizationType) else kind(own)
            writer.add_tensor(f"{own}.weight", quantize(array, form), raw_dtype=form)
    if rotary:
        writer.add_tensor("rope_freqs.weight", np.ones(HEAD // 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
