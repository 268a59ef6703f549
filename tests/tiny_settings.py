"""Configurations of the tiny models: as small as each family allows, and nowhere trivial."""

from __future__ import annotations

SIZE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3}
TEXT = {**SIZE, "vocab_size": 128, "max_position_embeddings": 64}
IMAGE = {**SIZE, "image_size": 32, "patch_size": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    "d_model": 32, "d_ff": 64, "num_layers": 3, "num_heads": 4, "d_kv": 8, "vocab_size": 128,
    "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
WHISPER = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 128,
    "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 16,
    "decoder_start_token_id": 3, **ENDS,
}  # fmt: skip
WAV2VEC2 = {
    **SIZE, "vocab_size": 128, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
}  # fmt: skip
SEW = {
    **WAV2VEC2, "conv_dim": (16,) * 13, "squeeze_factor": 2, "feat_extract_norm": "group", "pad_token_id": 0
}  # fmt: skip
DEBERTA = {
    **TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
}  # fmt: skip
DEBERTA_1 = {
    **TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False
}  # fmt: skip
MODERNBERT = {
    **TEXT, "local_attention": 6, "global_attn_every_n_layers": 2, **ENDS, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip
SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
    "window_size": 4,
}  # fmt: skip
LLM = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, **ENDS}
GEMMA3 = {
    **LLM, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "use_bidirectional_attention": True,
}  # fmt: skip
CONVNEXT = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 2], "image_size": 32}
PYRAMID = {
    "image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
}  # fmt: skip
HIERA = {
    "image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8],
    "masked_unit_size": [8, 8], "num_query_pool": 2,
}  # fmt: skip
CVT = {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}
LEVIT = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}  # fmt: skip
MOBILEVIT = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
    "num_attention_heads": 2,
}  # fmt: skip
EFFICIENTNET = {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
REGNET = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "groups_width": 8}
AST = {**SIZE, "max_length": 64, "num_mel_bins": 32}
MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 128, **ENDS}
GPT_NEO = {
    "hidden_size": 32, "num_layers": 4, "attention_types": [[["global", "local"], 2]], "num_heads": 4,
    "intermediate_size": 64, "window_size": 6, "vocab_size": 128, "max_position_embeddings": 64, **ENDS,
}  # fmt: skip
OPT = {
    "hidden_size": 32, "num_hidden_layers": 3, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 128,
    "max_position_embeddings": 64, "word_embed_proj_dim": 16, **ENDS,
}  # fmt: skip
BLOOM = {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 128, **ENDS}
FALCON = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128,
    "max_position_embeddings": 64, **ENDS,
}  # fmt: skip
EXPERTS = {**LLM, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN2_MOE = {**EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
DEEPSEEK = {
    **TEXT, **ENDS, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
GLM_MOE = {
    **LLM, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
GEMMA4 = {
    **LLM, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8,
    "sliding_window": 6,
}  # fmt: skip
GEMMA3N = {**GEMMA4, "laurel_rank": 4, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]}
GRANITE4 = {
    **EXPERTS, "layer_types": ["attention"] * 3, "position_embedding_type": "rope", "mamba_n_heads": 8,
    "shared_intermediate_size": 32,
}  # fmt: skip
MPT = {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 128, "max_seq_len": 64, **ENDS}
XGLM = {
    "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 64, "vocab_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
S2S = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 128,
    "max_position_embeddings": 64, "decoder_start_token_id": 2, **ENDS,
}  # fmt: skip
T5_S2S = {**T5, "num_decoder_layers": 2, "decoder_start_token_id": 0}
MARIAN = {**S2S, "pad_token_id": 3, "decoder_start_token_id": 3, "eos_token_id": 0}
M2M = {**S2S, "pad_token_id": 1, "bos_token_id": 0}
MOONSHINE = {
    "hidden_size": 48, "intermediate_size": 64, "encoder_num_hidden_layers": 3,
    "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    "vocab_size": 128, "max_position_embeddings": 64, "pad_head_dim_to_multiple_of": 8, "pad_token_id": 2,
}  # fmt: skip
SPEECH2TEXT = {
    **S2S, "max_source_positions": 600, "max_target_positions": 64, "conv_channels": 32,
    "input_feat_per_channel": 20, "pad_token_id": 1, "bos_token_id": 0,
}  # fmt: skip
SPEECH2TEXT.pop("max_position_embeddings")
BERT2BERT = {
    "encoder": {"model_type": "bert", **TEXT},
    "decoder": {
        "model_type": "bert", **TEXT, "num_hidden_layers": 2, "is_decoder": True,
        "add_cross_attention": True,
    },
    "decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 3,
}  # fmt: skip
T5GEMMA = {
    "encoder": {**LLM, "hidden_size": 48},
    "decoder": {**LLM, "num_hidden_layers": 2, "cross_attention_hidden_size": 48}, "vocab_size": 128,
}  # fmt: skip
XLS_R = {**BERT2BERT, "encoder": {"model_type": "wav2vec2", **WAV2VEC2, "hidden_size": 48}}
WAV2VEC2_BERT = {
    **SIZE, "vocab_size": 128, "feature_projection_input_dim": 20, "pad_token_id": 0,
    "conv_depthwise_kernel_size": 7, "left_max_position_embeddings": 8, "right_max_position_embeddings": 4,
}  # fmt: skip
FLAUBERT = {
    "vocab_size": 128, "emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 2, "pad_index": 2,
}  # fmt: skip
LABELS = {"id2label": {0: "low", 1: "middle", 2: "high"}, "label2id": {"low": 0, "middle": 1, "high": 2}}
DISTILBERT = {
    "dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 64, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
