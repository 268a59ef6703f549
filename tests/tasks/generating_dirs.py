"""Model directories without graphs for tasks that generate: tokenizer, configs, inputs of a component."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from onnxkit.artifact import ModelDir
from onnxkit.artifact.manifest import Component
from onnxkit.runtime import TensorSpec

SAMPLES = Path(__file__).parents[2] / "sample_models"
IDS = tuple(
    TensorSpec(name=name, dtype="int64", shape=("batch_size", "sequence_length"))
    for name in ("input_ids", "attention_mask")
)
LOGITS = (TensorSpec(name="logits", dtype="float32", shape=("batch_size", "sequence_length", 64)),)


def decoder_dir(folder: Path, task: str = "text-generation", **config: Any) -> ModelDir:
    """Describe a decoder-only model in a folder that has a tokenizer."""
    component = Component(file="model.onnx", inputs=IDS, outputs=LOGITS)
    return ModelDir(
        path=folder, task=task, components={"model": component}, weight_files=(), config=config, manifest=None
    )


def encoder_decoder_dir(folder: Path, task: str = "text2text-generation", **config: Any) -> ModelDir:
    """Describe an encoder-decoder in a folder that has a tokenizer."""
    encoder = Component(file="encoder_model.onnx", inputs=IDS, outputs=())
    decoder = Component(file="decoder_model.onnx", inputs=IDS, outputs=LOGITS)
    return ModelDir(
        path=folder, task=task, components={"encoder": encoder, "decoder": decoder}, weight_files=(),
        config={"decoder_start_token_id": 0, **config}, manifest=None,
    )  # fmt: skip


def sample(name: str, target: Path) -> ModelDir:
    """Copy the tokenizer and configs of a sample model, and describe its graphs."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (SAMPLES / name).glob("*.json"):
        shutil.copy(file, target)
    config = json.loads((target / "config.json").read_text())
    return (encoder_decoder_dir if config.get("is_encoder_decoder") else decoder_dir)(target, **config)


def write(folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a tokenizer and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    return folder


def byte_fallback() -> Tokenizer:
    """Return a tokenizer in Llama's layout: a space sign, bytes for the rest, <s> before a text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁cat", "▁a", "cat", "s", "t", "h", "e", "c", "a", ".", "▁é", "é"]
    merges = [
        ("c", "a"),
        ("ca", "t"),
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("▁", "cat"),
        ("▁", "a"),
        ("▁", "é"),
    ]
    pieces += [piece for piece in ("ca", "th", "the") if piece not in pieces]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
