"""Tiny random checkpoints, one per architecture, written to disk as `save_pretrained` would.

Tests and the generator of docs/models.md share this list. Nothing is imported before a checkpoint
is asked for: torch and transformers cost seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests import tiny_settings as tiny
from tests.tiny_processors import PROCESSORS, write_json

Kind = Literal["text", "image", "audio"]


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


def _text(name: str, stem: str, settings: Mapping[str, Any] = tiny.TEXT, **other: Any) -> TinyModel:
    values = {
        "name": name, "kind": "text", "task": "feature-extraction", "level": "L1",
        "model_class": f"{stem}Model", "config_class": f"{stem}Config", "settings": settings, **other,
    }  # fmt: skip
    return TinyModel(**values)


def _image(name: str, stem: str, settings: Mapping[str, Any] = tiny.IMAGE, **other: Any) -> TinyModel:
    return _text(name, stem, settings, **{"kind": "image", "task": "image-feature-extraction", **other})


def _decoder(
    name: str, stem: str, settings: Mapping[str, Any] = tiny.LLM, *, end: str = "ForCausalLM", **other: Any
) -> TinyModel:
    kind = {"task": "text-generation", "model_class": f"{stem}{end}"}
    return _text(name, stem, settings, **{**kind, **other})


def _seq2seq(
    name: str, stem: str, settings: Mapping[str, Any] = tiny.S2S, *, end: str = "ForConditionalGeneration",
    task: str = "text2text-generation", **other: Any,
) -> TinyModel:  # fmt: skip
    return _text(name, stem, settings, **{"task": task, "model_class": f"{stem}{end}", **other})


def _head(name: str, task: str, model_class: str, **settings: Any) -> TinyModel:
    return _text(name, "Bert", {**tiny.TEXT, **settings}, task=task, model_class=model_class)


TINY_MODELS: tuple[TinyModel, ...] = (
    _text("bert", "Bert"),
    _text("roberta", "Roberta", {**tiny.TEXT, "pad_token_id": 1, "type_vocab_size": 1}),
    _text("xlm-roberta", "XLMRoberta", {**tiny.TEXT, "pad_token_id": 1, "type_vocab_size": 1}),
    _text("distilbert", "DistilBert", tiny.DISTILBERT),
    _text("albert", "Albert", {**tiny.TEXT, "embedding_size": 16}),
    _text("electra", "Electra", {**tiny.TEXT, "embedding_size": 16}),
    _text("mpnet", "MPNet", {**tiny.TEXT, "pad_token_id": 1}),
    _text("modernbert", "ModernBert", tiny.MODERNBERT),
    _text("nomic_bert", "NomicBert", {**tiny.TEXT, "pad_token_id": 0}),
    _text("mobilebert", "MobileBert", {**tiny.TEXT, "embedding_size": 16, "intra_bottleneck_size": 16}),
    _text(
        "esm",
        "Esm",
        {**tiny.TEXT, "pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "rotary"},
    ),
    _text("eurobert", "EuroBert", {**tiny.LLM, "mask_token_id": 3}),
    _text("qwen3", "Qwen3", tiny.LLM),
    _text("mistral", "Mistral", {**tiny.LLM, "sliding_window": 6}),
    _text("gemma3", "Gemma3Text", tiny.GEMMA3, model_class="Gemma3TextModel"),
    _text("deberta-v2", "DebertaV2", tiny.DEBERTA),
    _text("deberta", "Deberta", tiny.DEBERTA_1),
    _text("roformer", "RoFormer", {**tiny.TEXT, "embedding_size": 16}),
    _text("squeezebert", "SqueezeBert", {**tiny.TEXT, "embedding_size": 32}),
    _text(
        "convbert", "ConvBert", {**tiny.TEXT, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 5}
    ),
    _text("rembert", "RemBert", {**tiny.TEXT, "input_embedding_size": 16, "output_embedding_size": 16}),
    _text("gte", "Gte"),
    _text("jina-v3", "JinaEmbeddingsV3", {**tiny.TEXT, "pad_token_id": 1}),
    _text("clip-text", "CLIPText", {**tiny.TEXT, "hidden_act": "quick_gelu", **tiny.ENDS}),
    _text("siglip-text", "SiglipText", {**tiny.TEXT, "max_position_embeddings": 16, **tiny.ENDS}),
    _image("clip-vision", "CLIPVision", {**tiny.IMAGE, "hidden_act": "quick_gelu"}),
    _image("siglip-vision", "SiglipVision"),
    _image("vit", "ViT"),
    _image("deit", "DeiT"),
    _image("dinov2", "Dinov2"),
    _image("beit", "Beit", {**tiny.IMAGE, "use_relative_position_bias": True}),
    _image("swin", "Swin", tiny.SWIN),
    _image("convnext", "ConvNext", tiny.CONVNEXT),
    _image(
        "resnet",
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    _image("convnextv2", "ConvNextV2", tiny.CONVNEXT),
    _image("efficientnet", "EfficientNet", tiny.EFFICIENTNET),
    _image("regnet", "RegNet", tiny.REGNET),
    _image("dinov3-vit", "DINOv3ViT", {**tiny.IMAGE, "num_register_tokens": 2}),
    _image("dinov2-with-registers", "Dinov2WithRegisters"),
    _image("mobilenet-v2", "MobileNetV2", {"image_size": 32, "depth_multiplier": 0.35}),
    _image("swinv2", "Swinv2", tiny.SWIN),
    _image("cvt", "Cvt", tiny.CVT),
    _image("levit", "Levit", tiny.LEVIT),
    _image("mobilevit", "MobileViT", tiny.MOBILEVIT),
    _image("pvt", "Pvt", {**tiny.PYRAMID, "sequence_reduction_ratios": [4, 2, 2, 1]}),
    _image("pvt-v2", "PvtV2", {**tiny.PYRAMID, "mlp_ratios": [2, 2, 2, 2]}),
    _image("hiera", "Hiera", tiny.HIERA),
    _text("t5", "T5", tiny.T5),
    _text("whisper", "Whisper", tiny.WHISPER, kind="audio"),
    _text("wav2vec2", "Wav2Vec2", tiny.WAV2VEC2, kind="audio"),
    _text("hubert", "Hubert", {**tiny.WAV2VEC2, "do_stable_layer_norm": True}, kind="audio"),
    _text("audio-spectrogram-transformer", "AST", tiny.AST, kind="audio"),
    *(
        _text(
            f"{name}-classifier",
            stem,
            {**settings, **tiny.LABELS},
            kind="audio",
            task="audio-classification",
            model_class=f"{stem}For{head}Classification",
        )
        for name, stem, settings, head in (
            ("wav2vec2", "Wav2Vec2", tiny.WAV2VEC2, "Sequence"),
            ("ast", "AST", tiny.AST, "Audio"),
            ("whisper", "Whisper", tiny.WHISPER, "Audio"),
        )
    ),
    _decoder("gpt2-lm", "GPT2", tiny.GPT, end="LMHeadModel"),
    _decoder("gpt-neo-lm", "GPTNeo", tiny.GPT_NEO),
    _decoder("gpt-neox-lm", "GPTNeoX", {**tiny.TEXT, **tiny.ENDS}),
    _decoder("gptj-lm", "GPTJ", {**tiny.GPT, "rotary_dim": 4}),
    _decoder("opt-lm", "OPT", tiny.OPT),
    _decoder("bloom-lm", "Bloom", tiny.BLOOM),
    _decoder("falcon-lm", "Falcon", {**tiny.FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    _decoder("falcon-alibi-lm", "Falcon", {**tiny.FALCON, "alibi": True}),
    _decoder("codegen-lm", "CodeGen", {**tiny.GPT, "rotary_dim": 4}),
    _decoder("biogpt-lm", "BioGpt", {**tiny.TEXT, **tiny.ENDS, "pad_token_id": 1, "bos_token_id": 0}),
    _decoder("llama-lm", "Llama", {**tiny.LLM, "tie_word_embeddings": True}),
    _decoder("mistral-lm", "Mistral", {**tiny.LLM, "sliding_window": 6}),
    _decoder("qwen2-lm", "Qwen2"),
    _decoder("qwen3-lm", "Qwen3"),
    _decoder("gemma-lm", "Gemma"),
    _decoder("gemma2-lm", "Gemma2", {**tiny.LLM, **tiny.MIXED}),
    _decoder("gemma3-lm", "Gemma3", {**tiny.LLM, **tiny.MIXED}, config_class="Gemma3TextConfig"),
    _decoder("phi-lm", "Phi", {**tiny.TEXT, **tiny.ENDS}),
    _decoder("phi3-lm", "Phi3"),
    _decoder("smollm3-lm", "SmolLM3", {**tiny.LLM, "no_rope_layers": [1, 1, 0]}),
    _decoder("olmo-lm", "Olmo"),
    _decoder("olmo2-lm", "Olmo2"),
    _decoder("olmoe-lm", "Olmoe", tiny.EXPERTS),
    _decoder("seed-oss-lm", "SeedOss"),
    _decoder("hunyuan-dense-lm", "HunYuanDenseV1"),
    _decoder("granite-lm", "Granite"),
    _decoder("stablelm-lm", "StableLm"),
    _decoder("cohere-lm", "Cohere"),
    _decoder("mixtral-lm", "Mixtral", tiny.EXPERTS),
    _decoder("qwen3-moe-lm", "Qwen3Moe", {**tiny.EXPERTS, "moe_intermediate_size": 32}),
    _decoder("gpt-oss-lm", "GptOss", {**tiny.EXPERTS, **tiny.MIXED}),
    _decoder("qwen2-moe-lm", "Qwen2Moe", tiny.QWEN2_MOE),
    _decoder("granitemoe-lm", "GraniteMoe", tiny.EXPERTS),
    _decoder("granitemoehybrid-lm", "GraniteMoeHybrid", tiny.GRANITE4),
    _decoder("phimoe-lm", "Phimoe", tiny.EXPERTS, level="L2"),
    _decoder("deepseek-v3-lm", "DeepseekV3", tiny.DEEPSEEK),
    _decoder("deepseek-v2-lm", "DeepseekV2", tiny.DEEPSEEK),
    _decoder("gemma3n-lm", "Gemma3n", tiny.GEMMA3N, config_class="Gemma3nTextConfig"),
    _decoder("gemma4-lm", "Gemma4", tiny.GEMMA4, config_class="Gemma4TextConfig"),
    _decoder("olmo3-lm", "Olmo3", {**tiny.LLM, **tiny.MIXED}),
    _decoder("exaone4-lm", "Exaone4", {**tiny.LLM, **tiny.MIXED}),
    _decoder("ernie4_5-lm", "Ernie4_5"),
    _decoder("glm-lm", "Glm"),
    _decoder("glm4-lm", "Glm4"),
    _decoder("glm4-moe-lm", "Glm4Moe", tiny.GLM_MOE),
    _decoder("minimax-m2-lm", "MiniMaxM2", tiny.EXPERTS),
    _decoder("ministral-lm", "Ministral", {**tiny.LLM, **tiny.MIXED}),
    _decoder("vaultgemma-lm", "VaultGemma", {**tiny.LLM, **tiny.MIXED}),
    _decoder("bitnet-lm", "BitNet"),
    _decoder("arcee-lm", "Arcee"),
    _decoder("cohere2-lm", "Cohere2", {**tiny.LLM, **tiny.MIXED}),
    _decoder("nemotron-lm", "Nemotron"),
    _decoder("starcoder2-lm", "Starcoder2"),
    _decoder("gpt-bigcode-lm", "GPTBigCode", tiny.GPT),
    _decoder("mpt-lm", "Mpt", tiny.MPT),
    _decoder("xglm-lm", "XGLM", tiny.XGLM),
    _head("bert-classifier", "text-classification", "BertForSequenceClassification", **tiny.LABELS),
    _text(
        "camembert-mlm",
        "Camembert",
        {**tiny.TEXT, "pad_token_id": 1, "type_vocab_size": 1},
        task="fill-mask",
        model_class="CamembertForMaskedLM",
    ),
    _text("flaubert", "Flaubert", tiny.FLAUBERT),
    _text(
        "nystromformer-mlm",
        "Nystromformer",
        {**tiny.TEXT, "num_landmarks": 64, "segment_means_seq_len": 64},
        task="fill-mask",
        model_class="NystromformerForMaskedLM",
    ),
    _text(
        "lilt-tagger",
        "Lilt",
        {
            **tiny.TEXT,
            "hidden_size": 48,
            "pad_token_id": 1,
            "max_2d_position_embeddings": 1024,
            **tiny.LABELS,
        },
        task="token-classification",
        model_class="LiltForTokenClassification",
    ),
    _text(
        "layoutlm-tagger",
        "LayoutLM",
        {**tiny.TEXT, "max_2d_position_embeddings": 1024, **tiny.LABELS},
        task="token-classification",
        model_class="LayoutLMForTokenClassification",
    ),
    _text(
        "bart-classifier",
        "Bart",
        {**tiny.S2S, **tiny.LABELS},
        task="text-classification",
        model_class="BartForSequenceClassification",
    ),
    _text(
        "xlm-roberta-reranker",
        "XLMRoberta",
        {**tiny.TEXT, "pad_token_id": 1, "type_vocab_size": 1, "num_labels": 1},
        task="text-classification",
        model_class="XLMRobertaForSequenceClassification",
    ),
    _text(
        "qwen3-reranker",
        "Qwen3",
        {**tiny.LLM, "num_labels": 1},
        task="text-classification",
        model_class="Qwen3ForSequenceClassification",
    ),
    _head("bert-tagger", "token-classification", "BertForTokenClassification", **tiny.LABELS),
    _head("bert-reader", "question-answering", "BertForQuestionAnswering"),
    _head("bert-mlm", "fill-mask", "BertForMaskedLM"),
    _image(
        "vit-classifier",
        "ViT",
        {**tiny.IMAGE, **tiny.LABELS},
        task="image-classification",
        model_class="ViTForImageClassification",
    ),
    _image(
        "clip-classifier",
        "CLIP",
        {"vision_config": tiny.IMAGE, "text_config": tiny.TEXT, **tiny.LABELS},
        task="image-classification",
        model_class="CLIPForImageClassification",
    ),
    _image(
        "segformer-classifier",
        "Segformer",
        {**tiny.PYRAMID, **tiny.LABELS},
        task="image-classification",
        model_class="SegformerForImageClassification",
    ),
    _seq2seq("t5-seq2seq", "T5", tiny.T5_S2S),
    _seq2seq("mt5-seq2seq", "MT5", {**tiny.T5_S2S, "tie_word_embeddings": False}),
    _seq2seq("umt5-seq2seq", "UMT5", tiny.T5_S2S),
    _seq2seq("bart-seq2seq", "Bart", task="summarization"),
    _seq2seq("mbart-seq2seq", "MBart"),
    _seq2seq("marian-seq2seq", "Marian", tiny.MARIAN, end="MTModel", task="translation"),
    _seq2seq("pegasus-seq2seq", "Pegasus", {**tiny.S2S, "eos_token_id": 1, "bos_token_id": 2}),
    _seq2seq("m2m100-seq2seq", "M2M100", tiny.M2M, task="translation", level="L2"),
    _seq2seq("blenderbot-seq2seq", "Blenderbot"),
    _seq2seq("bert2bert-seq2seq", "EncoderDecoder", tiny.BERT2BERT, end="Model"),
    _seq2seq("t5gemma-seq2seq", "T5Gemma", tiny.T5GEMMA),
    _seq2seq(
        "xls-r-speech",
        "SpeechEncoderDecoder",
        tiny.XLS_R,
        end="Model",
        task="automatic-speech-recognition",
        kind="audio",
    ),
    _seq2seq(
        "whisper-speech",
        "Whisper",
        {**tiny.WHISPER, "decoder_layers": 2, "max_target_positions": 64},
        task="automatic-speech-recognition",
        kind="audio",
    ),
    _seq2seq(
        "moonshine-speech", "Moonshine", tiny.MOONSHINE, task="automatic-speech-recognition", kind="audio"
    ),
    _seq2seq(
        "speech2text-speech",
        "Speech2Text",
        tiny.SPEECH2TEXT,
        task="automatic-speech-recognition",
        kind="audio",
        level="L2",
    ),
    _text(
        "wav2vec2-ctc",
        "Wav2Vec2",
        {**tiny.WAV2VEC2, "pad_token_id": 0},
        kind="audio",
        task="automatic-speech-recognition",
        model_class="Wav2Vec2ForCTC",
    ),
    _text(
        "wav2vec2-bert-ctc",
        "Wav2Vec2Bert",
        tiny.WAV2VEC2_BERT,
        kind="audio",
        task="automatic-speech-recognition",
        model_class="Wav2Vec2BertForCTC",
    ),
    _text(
        "wavlm-ctc",
        "WavLM",
        {**tiny.WAV2VEC2, "pad_token_id": 0},
        kind="audio",
        task="automatic-speech-recognition",
        model_class="WavLMForCTC",
    ),
    _text(
        "sew-ctc",
        "SEW",
        tiny.SEW,
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
