"""Tiny AWQ and GPTQ checkpoints, packed word by word as the formats define it, and what they stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight: its stored tensors by part, and the float32 `[N, K]` that they stand for."""

    parts: dict[str, np.ndarray]
    weight: np.ndarray


def quantization(method: str, *, bits: int = 4, group: int = 32, **other: Any) -> dict[str, Any]:
    """A config.json's `quantization_config`."""
    variant = {"version": "gemm", "zero_point": True} if method == "awq" else {"checkpoint_format": "gptq"}
    return {"quant_method": method, "bits": bits, "group_size": group, **variant, **other}


def pack(
    weight: np.ndarray,
    settings: dict[str, Any],
    *,
    symmetric: bool = False,
    act_order: bool = False,
    seed: int = 0,
) -> Packed:
    """Quantize `[N, K]` group by group along K, to the nearest code."""
    channels, depth = weight.shape
    bits, group = settings["bits"], settings["group_size"] if settings["group_size"] > 0 else depth
    indices = np.arange(depth) // group
    if act_order:
        indices = np.random.default_rng(seed).permutation(indices)
    codes = np.zeros((channels, depth), np.int64)
    scales = np.zeros((indices.max() + 1, channels), np.float16)
    zeros = np.zeros(scales.shape, np.int64)
    for number in range(len(scales)):
        part = weight[:, indices == number]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[number] = np.maximum((high - low) / (2**bits - 1), 1e-4)
        scale = scales[number].astype(np.float32)
        zeros[number] = 2 ** (bits - 1) if symmetric else np.clip(np.round(-low / scale), 0, 2**bits - 1)
        nearest = np.round(part / scale[:, None]) + zeros[number][:, None]
        codes[:, indices == number] = np.clip(nearest, 0, 2**bits - 1)
    decoded = (codes - zeros[indices].T).astype(np.float32) * scales[indices].T.astype(np.float32)
    parts = {"scales": scales}
    if settings["quant_method"] == "awq":
        parts |= {"qweight": _words(codes.T, 4, AWQ_ORDER), "qzeros": _words(zeros, 4, AWQ_ORDER)}
    else:
        in_turn = tuple(range(32 // bits))
        words = _words(zeros, bits, in_turn)
        if settings["checkpoint_format"] == "gptq":
            words = (words.view(np.uint32) - np.uint32(int("01" * 4 if bits == 8 else "1" * 8, 16))).view(
                np.int32
            )
        parts |= {
            "qweight": np.ascontiguousarray(_words(codes, bits, in_turn).T), "qzeros": words,
            "g_idx": indices.astype(np.int32),
        }  # fmt: skip
    return Packed(parts=parts, weight=decoded)


def _words(codes: np.ndarray, bits: int, order: tuple[int, ...]) -> np.ndarray:
    """`[rows, columns]` → int32 `[rows, columns·bits/32]`: each word from its low bits up."""
    rows, columns = codes.shape
    words = np.zeros((rows, columns * bits // 32), np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate(order):
            code = codes[:, word * len(order) + column].astype(np.uint32)
            words[:, word] |= code << np.uint32(place * bits)
    return words.view(np.int32)


def save_packed(
    model: PreTrainedModel, path: Path, settings: dict[str, Any], **choices: Any
) -> dict[str, np.ndarray]:
    """Write a checkpoint whose layers' linears are packed; return those weights, decoded."""
    path.mkdir(parents=True)
    tensors: dict[str, np.ndarray] = {}
    decoded: dict[str, np.ndarray] = {}
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        array, stem = tensor.to(torch.float16).numpy(), name.removesuffix(".weight")
        if array.ndim == 2 and ".layers." in name:
            made = pack(tensor.numpy(), settings, **choices)
            tensors |= {f"{stem}.{part}": np.ascontiguousarray(value) for part, value in made.parts.items()}
            decoded[name] = made.weight
        elif not (tied and name == "lm_head.weight"):
            tensors[name] = array
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "quantization_config": settings,
    }
    (path / "config.json").write_text(json.dumps(config))
    return decoded
