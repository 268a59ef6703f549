"""Tiny speech models and recordings for tests: made in memory, or written with soundfile."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onnxkit.artifact import ModelDir
from onnxkit.artifact.manifest import Component
from onnxkit.runtime import TensorSpec
from tests.model_dirs import save_graph

RATE = 16_000
CODES = ("en", "de", "fr", "es")
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
HOP = 320


def tone(seconds: float, *, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Return a sine that changes its pitch, with noise: float32 [samples]."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 150 * np.sin(2 * np.pi * 0.3 * times + seed)
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    return (wave + 0.02 * generator.standard_normal(len(times))).astype(np.float32)


def layout(words: int, timestamps: int) -> dict[str, Any]:
    """Return all tokens (words, whisper's special ones, timestamps) and what generation_config.json says."""
    eos = words
    named = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    specials = [f"<|{name}|>" for name in ("endoftext", "startoftranscript", *CODES, *named)]
    ids = {name: eos + index for index, name in enumerate(specials)}
    return {
        "tokens": [f"w{i}" for i in range(words)]
        + specials
        + [f"<|{i * 0.02:.2f}|>" for i in range(timestamps)],
        "generation": {
            "decoder_start_token_id": ids["<|startoftranscript|>"],
            "eos_token_id": eos,
            "pad_token_id": eos,
            "bos_token_id": eos,
            "is_multilingual": True,
            "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in CODES},
            "task_to_id": {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "max_initial_timestamp_index": 50,
            "suppress_tokens": [3, ids["<|startoflm|>"], ids["<|startofprev|>"], ids["<|nospeech|>"]],
            "begin_suppress_tokens": [5, eos],
            "return_timestamps": False,
        },
    }


def word_tokenizer(tokens: Sequence[str], specials: Sequence[str]) -> Tokenizer:
    """Return a tokenizer of whole words with these ids, in order."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def whisper_dir(
    folder: Path, *, words: int = 40, window_s: int = 30, mels: int = 80, limit: int = 48, **generation: Any
) -> ModelDir:
    """Write the files beside whisper's graphs, and return the directory with its components described."""
    folder.mkdir(parents=True, exist_ok=True)
    made = layout(words, window_s * 50 + 1)
    specials = made["tokens"][words : words + 12]
    word_tokenizer(made["tokens"], specials).save(str(folder / "tokenizer.json"))
    settings = {**made["generation"], "max_length": limit, **generation}
    settings = {key: value for key, value in settings.items() if value is not None}
    config = {
        "model_type": "whisper", "vocab_size": len(made["tokens"]), "max_source_positions": window_s * 50,
        "max_target_positions": limit, "num_mel_bins": mels,
    }  # fmt: skip
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": mels, "chunk_length": window_s,
        "sampling_rate": RATE, "n_fft": 400, "hop_length": 160,
    }  # fmt: skip
    for name, content in (("generation_config", settings), ("config", config),
                          ("preprocessor_config", extractor), ("tokenizer_config", {})):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))
    features = TensorSpec(name="input_features", dtype="float32", shape=("batch", mels, window_s * 100))
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
    return ModelDir(
        path=folder,
        task="automatic-speech-recognition",
        components={
            "encoder": Component(file="encoder_model.onnx", inputs=(features,), outputs=()),
            "decoder": Component(file="decoder_model.onnx", inputs=(ids,), outputs=()),
        },
        weight_files=(),
        config=config,
        manifest=None,
    )


@dataclasses.dataclass(frozen=True)
class Said:
    """What the engine gives for a row."""

    tokens: tuple[int, ...]
    finish_reason: str = "stop"
    score: float | None = 0.0


def ctc_dir(
    folder: Path, *, masked: bool = True, group: bool = False, kind: str = "wav2vec2", adapter: bool = False
) -> tuple[Path, np.ndarray]:
    """A model that multiplies 400 samples, every 320, with random weights; and these, [tokens, 400]."""
    inputs = {"input_values": (TensorProto.FLOAT, ["n", "samples"])}
    if masked:
        inputs["attention_mask"] = (TensorProto.INT64, ["n", "samples"])
    weights = np.random.default_rng(3).standard_normal((len(LETTERS), 1, 400)).astype(np.float32)
    save_graph(
        folder / "model.onnx",
        [
            helper.make_node("Unsqueeze", ["input_values", "axis"], ["channel"]),
            helper.make_node("Conv", ["channel", "weights"], ["frames"], strides=[HOP]),
            helper.make_node("Transpose", ["frames"], ["logits"], perm=[0, 2, 1]),
        ],
        inputs=inputs,
        outputs={"logits": ["n", "frames", len(LETTERS)]},
        weights={"weights": weights, "axis": np.array([1])},
    )
    files = {
        "config": {
            "model_type": kind, "architectures": ["Wav2Vec2ForCTC"], "add_adapter": adapter,
            "conv_kernel": [400], "conv_stride": [HOP], "feat_extract_norm": "group" if group else "layer",
        },
        "preprocessor_config": {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": RATE},
        "vocab": {letter: index for index, letter in enumerate(LETTERS)},
        "tokenizer_config": {"pad_token": "<pad>", "word_delimiter_token": "|"},
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder, weights[:, 0]


def save_whisper(
    folder: Path,
    *,
    words: int = 40,
    limit: int = 48,
    scale: float = 30.0,
    seed: int = 0,
    shape: dict[str, int] | None = None,
    **generation: Any,
) -> Any:
    """Write a random whisper checkpoint with its companions, and return the transformers model.

    Its weights are `scale` times the usual ones, so that what it says changes from step to step.
    """  # fmt: skip
    import torch
    import transformers

    whisper_dir(folder, words=words, limit=limit, **generation)
    settings = json.loads((folder / "generation_config.json").read_text())
    small = {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 64,
    }  # fmt: skip
    ids = {name: settings[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = transformers.WhisperConfig(
        **{**small, **(shape or {})}, **ids, decoder_start_token_id=settings["decoder_start_token_id"],
        vocab_size=len(layout(words, 1501)["tokens"]), num_mel_bins=80, max_target_positions=limit,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "encoder.embed_positions" not in name:
                parameter.mul_(scale)
    model.generation_config = transformers.GenerationConfig(**settings)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return model


def save_transcriber(folder: Path, name: str, *, scale: float = 20.0) -> Any:
    """Write a tiny Moonshine or Speech2Text with a tokenizer of words, and return the transformers model.

    Its weights are `scale` times the usual ones, so that what it says changes from step to step.
    """
    import torch
    import transformers

    from tests.tiny_models import BY_NAME, save_tiny

    tiny = BY_NAME[name]
    save_tiny(name, folder)
    model = getattr(transformers, tiny.model_class).from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    words = [f"w{index}" for index in range(tiny.settings["vocab_size"])]
    word_tokenizer(words, words[:3]).save(str(folder / "tokenizer.json"))
    return model.eval()


def transcriber_dir(folder: Path, extractor: dict[str, Any], **config: Any) -> ModelDir:
    """Write the files beside an encoder's and a decoder's graphs, and describe them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<lang:de>", "<lang:fr>", *(f"w{i}" for i in range(20))]
    word_tokenizer(tokens, tokens[:6]).save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": RATE, **extractor}))
    banks = extractor.get("num_mel_bins")
    axes = ("batch", "time", banks) if banks else ("batch", "time")
    heard = TensorSpec(name="input_features" if banks else "input_values", dtype="float32", shape=axes)
    mask = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "time"))
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
    return ModelDir(
        path=folder,
        task="automatic-speech-recognition",
        components={
            "encoder": Component(file="encoder_model.onnx", inputs=(heard, mask), outputs=()),
            "decoder": Component(file="decoder_model.onnx", inputs=(ids,), outputs=()),
        },
        weight_files=(),
        config={"decoder_start_token_id": 2, **config},
        manifest=None,
    )
