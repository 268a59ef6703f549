"""Tiny random checkpoints, one per architecture, written to disk as `save_pretrained` would.

Tests and the generator of docs/models.md share this list. Nothing is imported before a checkpoint
is asked for: torch and transformers cost seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.tiny_processors import PROCESSORS, write_json

Kind = Literal["text", "image", "audio"]

_SIZE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3}
_TEXT = {**_SIZE, "vocab_size": 128, "max_position_embeddings": 64}
_IMAGE = {**_SIZE, "image_size": 32, "patch_size": 8}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_T5 = {
    "d_model": 32, "d_ff": 64, "num_layers": 3, "num_heads": 4, "d_kv": 8, "vocab_size": 128,
    "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_WHISPER = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 128,
    "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 16,
    "decoder_start_token_id": 3, **_ENDS,
}  # fmt: skip
_WAV2VEC2 = {
    **_SIZE, "vocab_size": 128, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
}  # fmt: skip
_SEW = {
    **_WAV2VEC2, "conv_dim": (16,) * 13, "squeeze_factor": 2, "feat_extract_norm": "group", "pad_token_id": 0
}  # fmt: skip
_DEBERTA = {
    **_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
}  # fmt: skip
_DEBERTA_1 = {
    **_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False
}  # fmt: skip
_MODERNBERT = {
    **_TEXT, "local_attention": 6, "global_attn_every_n_layers": 2, **_ENDS, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip
_SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
    "window_size": 4,
}  # fmt: skip
_LLM = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, **_ENDS}
_GEMMA3 = {
    **_LLM, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "use_bidirectional_attention": True,
}  # fmt: skip
_CONVNEXT = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 2], "image_size": 32}
_PYRAMID = {
    "image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
}  # fmt: skip
_CVT = {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}
_LEVIT = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}  # fmt: skip
_MOBILEVIT = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
    "num_attention_heads": 2,
}  # fmt: skip
_EFFICIENTNET = {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
_REGNET = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "groups_width": 8}
_AST = {**_SIZE, "max_length": 64, "num_mel_bins": 32}
_MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 128, **_ENDS}
_GPT_NEO = {
    "hidden_size": 32, "num_layers": 4, "attention_types": [[["global", "local"], 2]], "num_heads": 4,
    "intermediate_size": 64, "window_size": 6, "vocab_size": 128, "max_position_embeddings": 64, **_ENDS,
}  # fmt: skip
_OPT = {
    "hidden_size": 32, "num_hidden_layers": 3, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 128,
    "max_position_embeddings": 64, "word_embed_proj_dim": 16, **_ENDS,
}  # fmt: skip
_BLOOM = {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 128, **_ENDS}
_FALCON = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128,
    "max_position_embeddings": 64, **_ENDS,
}  # fmt: skip
_EXPERTS = {**_LLM, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN2_MOE = {**_EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
_DEEPSEEK = {
    **_TEXT, **_ENDS, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
_GEMMA4 = {
    **_LLM, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8,
    "sliding_window": 6,
}  # fmt: skip
_GEMMA3N = {**_GEMMA4, "laurel_rank": 4, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]}
_GRANITE4 = {
    **_EXPERTS, "layer_types": ["attention"] * 3, "position_embedding_type": "rope", "mamba_n_heads": 8,
    "shared_intermediate_size": 32,
}  # fmt: skip
_MPT = {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 128, "max_seq_len": 64, **_ENDS}
_XGLM = {
    "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 64, "vocab_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_S2S = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 128,
    "max_position_embeddings": 64, "decoder_start_token_id": 2, **_ENDS,
}  # fmt: skip
_T5_S2S = {**_T5, "num_decoder_layers": 2, "decoder_start_token_id": 0}
_MARIAN = {**_S2S, "pad_token_id": 3, "decoder_start_token_id": 3, "eos_token_id": 0}
_M2M = {**_S2S, "pad_token_id": 1, "bos_token_id": 0}
_MOONSHINE = {
    "hidden_size": 48, "intermediate_size": 64, "encoder_num_hidden_layers": 3,
    "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    "vocab_size": 128, "max_position_embeddings": 64, "pad_head_dim_to_multiple_of": 8, "pad_token_id": 2,
}  # fmt: skip
_SPEECH2TEXT = {
    **_S2S, "max_source_positions": 600, "max_target_positions": 64, "conv_channels": 32,
    "input_feat_per_channel": 20, "pad_token_id": 1, "bos_token_id": 0,
}  # fmt: skip
_SPEECH2TEXT.pop("max_position_embeddings")
_BERT2BERT = {
    "encoder": {"model_type": "bert", **_TEXT},
    "decoder": {
        "model_type": "bert", **_TEXT, "num_hidden_layers": 2, "is_decoder": True,
        "add_cross_attention": True,
    },
    "decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 3,
}  # fmt: skip
_FLAUBERT = {
    "vocab_size": 128, "emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 2, "pad_index": 2,
}  # fmt: skip
_LABELS = {"id2label": {0: "low", 1: "middle", 2: "high"}, "label2id": {"low": 0, "middle": 1, "high": 2}}


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """One architecture: how to build it, what it is for, and the level that its export reaches at least."""

    name: str
    kind: Kind
    task: str
    model_class: str
    config_class: str
    level: Literal["L1", "L2", "L3"]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _text(name: str, stem: str, settings: Mapping[str, Any] = _TEXT, **other: Any) -> TinyModel:
    values = {
        "name": name, "kind": "text", "task": "feature-extraction", "level": "L1",
        "model_class": f"{stem}Model", "config_class": f"{stem}Config", "settings": settings, **other,
    }  # fmt: skip
    return TinyModel(**values)


def _image(name: str, stem: str, settings: Mapping[str, Any] = _IMAGE, **other: Any) -> TinyModel:
    return _text(name, stem, settings, **{"kind": "image", "task": "image-feature-extraction", **other})


def _decoder(
    name: str, stem: str, settings: Mapping[str, Any] = _LLM, *, end: str = "ForCausalLM", **other: Any
) -> TinyModel:
    kind = {"task": "text-generation", "model_class": f"{stem}{end}"}
    return _text(name, stem, settings, **{**kind, **other})


def _seq2seq(
    name: str, stem: str, settings: Mapping[str, Any] = _S2S, *, end: str = "ForConditionalGeneration",
    task: str = "text2text-generation", **other: Any,
) -> TinyModel:  # fmt: skip
    return _text(name, stem, settings, **{"task": task, "model_class": f"{stem}{end}", **other})


def _head(name: str, task: str, model_class: str, **settings: Any) -> TinyModel:
    return _text(name, "Bert", {**_TEXT, **settings}, task=task, model_class=model_class)


_DISTILBERT = {
    "dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 64, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip

TINY_MODELS: tuple[TinyModel, ...] = (
    _text("bert", "Bert"),
    _text("roberta", "Roberta", {**_TEXT, "pad_token_id": 1, "type_vocab_size": 1}),
    _text("xlm-roberta", "XLMRoberta", {**_TEXT, "pad_token_id": 1, "type_vocab_size": 1}),
    _text("distilbert", "DistilBert", _DISTILBERT),
    _text("albert", "Albert", {**_TEXT, "embedding_size": 16}),
    _text("electra", "Electra", {**_TEXT, "embedding_size": 16}),
    _text("mpnet", "MPNet", {**_TEXT, "pad_token_id": 1}),
    _text("modernbert", "ModernBert", _MODERNBERT),
    _text("nomic_bert", "NomicBert", {**_TEXT, "pad_token_id": 0}),
    _text("mobilebert", "MobileBert", {**_TEXT, "embedding_size": 16, "intra_bottleneck_size": 16}),
    _text(
        "esm", "Esm", {**_TEXT, "pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "rotary"}
    ),
    _text("eurobert", "EuroBert", {**_LLM, "mask_token_id": 3}),
    _text("qwen3", "Qwen3", _LLM),
    _text("mistral", "Mistral", {**_LLM, "sliding_window": 6}),
    _text("gemma3", "Gemma3Text", _GEMMA3, model_class="Gemma3TextModel"),
    _text("deberta-v2", "DebertaV2", _DEBERTA),
    _text("deberta", "Deberta", _DEBERTA_1),
    _text("roformer", "RoFormer", {**_TEXT, "embedding_size": 16}),
    _text("squeezebert", "SqueezeBert", {**_TEXT, "embedding_size": 32}),
    _text("convbert", "ConvBert", {**_TEXT, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 5}),
    _text("rembert", "RemBert", {**_TEXT, "input_embedding_size": 16, "output_embedding_size": 16}),
    _text("gte", "Gte"),
    _text("jina-v3", "JinaEmbeddingsV3", {**_TEXT, "pad_token_id": 1}),
    _text("clip-text", "CLIPText", {**_TEXT, "hidden_act": "quick_gelu", **_ENDS}),
    _text("siglip-text", "SiglipText", {**_TEXT, "max_position_embeddings": 16, **_ENDS}),
    _image("clip-vision", "CLIPVision", {**_IMAGE, "hidden_act": "quick_gelu"}),
    _image("siglip-vision", "SiglipVision"),
    _image("vit", "ViT"),
    _image("deit", "DeiT"),
    _image("dinov2", "Dinov2"),
    _image("beit", "Beit", {**_IMAGE, "use_relative_position_bias": True}),
    _image("swin", "Swin", _SWIN),
    _image("convnext", "ConvNext", _CONVNEXT),
    _image(
        "resnet",
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    _image("convnextv2", "ConvNextV2", _CONVNEXT),
    _image("efficientnet", "EfficientNet", _EFFICIENTNET),
    _image("regnet", "RegNet", _REGNET),
    _image("dinov3-vit", "DINOv3ViT", {**_IMAGE, "num_register_tokens": 2}),
    _image("dinov2-with-registers", "Dinov2WithRegisters"),
    _image("mobilenet-v2", "MobileNetV2", {"image_size": 32, "depth_multiplier": 0.35}),
    _image("swinv2", "Swinv2", _SWIN, level="L3"),
    _image("cvt", "Cvt", _CVT),
    _image("levit", "Levit", _LEVIT),
    _image("mobilevit", "MobileViT", _MOBILEVIT),
    _image("pvt", "Pvt", {**_PYRAMID, "sequence_reduction_ratios": [4, 2, 2, 1]}),
    _text("t5", "T5", _T5),
    _text("whisper", "Whisper", _WHISPER, kind="audio"),
    _text("wav2vec2", "Wav2Vec2", _WAV2VEC2, kind="audio"),
    _text("hubert", "Hubert", {**_WAV2VEC2, "do_stable_layer_norm": True}, kind="audio"),
    _text("audio-spectrogram-transformer", "AST", _AST, kind="audio"),
    _decoder("gpt2-lm", "GPT2", _GPT, end="LMHeadModel"),
    _decoder("gpt-neo-lm", "GPTNeo", _GPT_NEO),
    _decoder("gpt-neox-lm", "GPTNeoX", {**_TEXT, **_ENDS}),
    _decoder("gptj-lm", "GPTJ", {**_GPT, "rotary_dim": 4}),
    _decoder("opt-lm", "OPT", _OPT),
    _decoder("bloom-lm", "Bloom", _BLOOM),
    _decoder("falcon-lm", "Falcon", {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    _decoder("falcon-alibi-lm", "Falcon", {**_FALCON, "alibi": True}),
    _decoder("codegen-lm", "CodeGen", {**_GPT, "rotary_dim": 4}),
    _decoder("biogpt-lm", "BioGpt", {**_TEXT, **_ENDS, "pad_token_id": 1, "bos_token_id": 0}),
    _decoder("llama-lm", "Llama", {**_LLM, "tie_word_embeddings": True}),
    _decoder("mistral-lm", "Mistral", {**_LLM, "sliding_window": 6}),
    _decoder("qwen2-lm", "Qwen2"),
    _decoder("qwen3-lm", "Qwen3"),
    _decoder("gemma-lm", "Gemma"),
    _decoder("gemma2-lm", "Gemma2", {**_LLM, **_MIXED}),
    _decoder("gemma3-lm", "Gemma3", {**_LLM, **_MIXED}, config_class="Gemma3TextConfig"),
    _decoder("phi-lm", "Phi", {**_TEXT, **_ENDS}),
    _decoder("phi3-lm", "Phi3"),
    _decoder("smollm3-lm", "SmolLM3", {**_LLM, "no_rope_layers": [1, 1, 0]}),
    _decoder("olmo-lm", "Olmo"),
    _decoder("olmo2-lm", "Olmo2"),
    _decoder("olmoe-lm", "Olmoe", _EXPERTS),
    _decoder("seed-oss-lm", "SeedOss"),
    _decoder("hunyuan-dense-lm", "HunYuanDenseV1"),
    _decoder("granite-lm", "Granite"),
    _decoder("stablelm-lm", "StableLm"),
    _decoder("cohere-lm", "Cohere"),
    _decoder("mixtral-lm", "Mixtral", _EXPERTS),
    _decoder("qwen3-moe-lm", "Qwen3Moe", {**_EXPERTS, "moe_intermediate_size": 32}),
    _decoder("gpt-oss-lm", "GptOss", {**_EXPERTS, **_MIXED}),
    _decoder("qwen2-moe-lm", "Qwen2Moe", _QWEN2_MOE),
    _decoder("granitemoe-lm", "GraniteMoe", _EXPERTS),
    _decoder("granitemoehybrid-lm", "GraniteMoeHybrid", _GRANITE4),
    _decoder("phimoe-lm", "Phimoe", _EXPERTS, level="L2"),
    _decoder("deepseek-v3-lm", "DeepseekV3", _DEEPSEEK),
    _decoder("gemma3n-lm", "Gemma3n", _GEMMA3N, config_class="Gemma3nTextConfig"),
    _decoder("gemma4-lm", "Gemma4", _GEMMA4, config_class="Gemma4TextConfig"),
    _decoder("olmo3-lm", "Olmo3", {**_LLM, **_MIXED}),
    _decoder("exaone4-lm", "Exaone4", {**_LLM, **_MIXED}),
    _decoder("ernie4_5-lm", "Ernie4_5"),
    _decoder("glm4-lm", "Glm4"),
    _decoder("cohere2-lm", "Cohere2", {**_LLM, **_MIXED}),
    _decoder("nemotron-lm", "Nemotron"),
    _decoder("starcoder2-lm", "Starcoder2"),
    _decoder("gpt-bigcode-lm", "GPTBigCode", _GPT),
    _decoder("mpt-lm", "Mpt", _MPT),
    _decoder("xglm-lm", "XGLM", _XGLM),
    _head("bert-classifier", "text-classification", "BertForSequenceClassification", **_LABELS),
    _text(
        "camembert-mlm",
        "Camembert",
        {**_TEXT, "pad_token_id": 1, "type_vocab_size": 1},
        task="fill-mask",
        model_class="CamembertForMaskedLM",
    ),
    _text("flaubert", "Flaubert", _FLAUBERT),
    _text(
        "lilt-tagger",
        "Lilt",
        {**_TEXT, "hidden_size": 48, "pad_token_id": 1, "max_2d_position_embeddings": 1024, **_LABELS},
        task="token-classification",
        model_class="LiltForTokenClassification",
    ),
    _text(
        "layoutlm-tagger",
        "LayoutLM",
        {**_TEXT, "max_2d_position_embeddings": 1024, **_LABELS},
        task="token-classification",
        model_class="LayoutLMForTokenClassification",
    ),
    _text(
        "bart-classifier",
        "Bart",
        {**_S2S, **_LABELS},
        task="text-classification",
        model_class="BartForSequenceClassification",
    ),
    _text(
        "xlm-roberta-reranker",
        "XLMRoberta",
        {**_TEXT, "pad_token_id": 1, "type_vocab_size": 1, "num_labels": 1},
        task="text-classification",
        model_class="XLMRobertaForSequenceClassification",
    ),
    _text(
        "qwen3-reranker",
        "Qwen3",
        {**_LLM, "num_labels": 1},
        task="text-classification",
        model_class="Qwen3ForSequenceClassification",
    ),
    _head("bert-tagger", "token-classification", "BertForTokenClassification", **_LABELS),
    _head("bert-reader", "question-answering", "BertForQuestionAnswering"),
    _head("bert-mlm", "fill-mask", "BertForMaskedLM"),
    _image(
        "vit-classifier",
        "ViT",
        {**_IMAGE, **_LABELS},
        task="image-classification",
        model_class="ViTForImageClassification",
    ),
    _image(
        "clip-classifier",
        "CLIP",
        {"vision_config": _IMAGE, "text_config": _TEXT, **_LABELS},
        task="image-classification",
        model_class="CLIPForImageClassification",
    ),
    _image(
        "segformer-classifier",
        "Segformer",
        {**_PYRAMID, **_LABELS},
        task="image-classification",
        model_class="SegformerForImageClassification",
    ),
    _seq2seq("t5-seq2seq", "T5", _T5_S2S),
    _seq2seq("mt5-seq2seq", "MT5", {**_T5_S2S, "tie_word_embeddings": False}),
    _seq2seq("umt5-seq2seq", "UMT5", _T5_S2S),
    _seq2seq("bart-seq2seq", "Bart", task="summarization"),
    _seq2seq("mbart-seq2seq", "MBart"),
    _seq2seq("marian-seq2seq", "Marian", _MARIAN, end="MTModel", task="translation"),
    _seq2seq("pegasus-seq2seq", "Pegasus", {**_S2S, "eos_token_id": 1, "bos_token_id": 2}),
    _seq2seq("m2m100-seq2seq", "M2M100", _M2M, task="translation", level="L2"),
    _seq2seq("blenderbot-seq2seq", "Blenderbot"),
    _seq2seq("bert2bert-seq2seq", "EncoderDecoder", _BERT2BERT, end="Model"),
    _seq2seq(
        "whisper-speech",
        "Whisper",
        {**_WHISPER, "decoder_layers": 2, "max_target_positions": 64},
        task="automatic-speech-recognition",
        kind="audio",
    ),
    _seq2seq("moonshine-speech", "Moonshine", _MOONSHINE, task="automatic-speech-recognition", kind="audio"),
    _seq2seq(
        "speech2text-speech",
        "Speech2Text",
        _SPEECH2TEXT,
        task="automatic-speech-recognition",
        kind="audio",
        level="L2",
    ),
    _text(
        "wav2vec2-ctc",
        "Wav2Vec2",
        {**_WAV2VEC2, "pad_token_id": 0},
        kind="audio",
        task="automatic-speech-recognition",
        model_class="Wav2Vec2ForCTC",
    ),
    _text(
        "wavlm-ctc",
        "WavLM",
        {**_WAV2VEC2, "pad_token_id": 0},
        kind="audio",
        task="automatic-speech-recognition",
        model_class="WavLMForCTC",
    ),
    _text(
        "sew-ctc",
        "SEW",
        _SEW,
        kind="audio",
        task="automatic-speech-recognition",
        model_class="SEWForCTC",
    ),
)
BY_NAME: dict[str, TinyModel] = {model.name: model for model in TINY_MODELS}


def save_tiny(name: str, directory: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint `name` (config, safetensors, tokenizer or processor) and return `directory`.

    Biases and norm weights are perturbed, since their initial zeros and ones would hide mistakes.
    """
    import torch
    import transformers

    tiny = BY_NAME[name]
    torch.manual_seed(seed)
    config = getattr(transformers, tiny.config_class)(**tiny.settings)
    model = getattr(transformers, tiny.model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer) * 0.05)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    PROCESSORS[tiny.kind](directory, tiny)
    return directory


def save_tiny_sentence_model(
    directory: Path, *, pooling: str = "mean", normalize: bool = True, dense: int | None = None, seed: int = 0
) -> Path:
    """Write a sentence-transformers directory around the tiny BERT.

    Args:
        pooling: a name of sentence-transformers' `pooling_mode`: mean, cls, max, mean_sqrt_len_tokens,
            weightedmean, lasttoken.
        dense: width of a Dense module (tanh) after the pooling, if any.
    """
    save_tiny("bert", directory, seed=seed)
    kinds = ["Transformer", "Pooling"] + ["Dense"] * bool(dense) + ["Normalize"] * normalize
    modules = []
    for index, kind in enumerate(kinds):
        path = "" if index == 0 else f"{index}_{kind}"
        modules.append(
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (directory / path).mkdir(exist_ok=True)
    flag = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}.get(pooling, pooling)
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, f"pooling_mode_{flag}": True},
    )
    write_json(directory / "modules.json", modules)
    if dense:
        _save_dense(directory / "2_Dense", dense, seed)
    return directory


def _save_dense(directory: Path, width: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {
        "linear.weight": torch.randn(width, 32, generator=generator) * 0.2,
        "linear.bias": torch.randn(width, generator=generator) * 0.1,
    }
    save_file(weights, directory / "model.safetensors")
    settings = {
        "in_features": 32,
        "out_features": width,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    write_json(directory / "config.json", settings)
