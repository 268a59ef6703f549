"""Seeded inputs for a graph with a cache: prefill, decode, continuation, over empty and padded pasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxkit.artifact import ModelDir
from onnxkit.machine import memory
from onnxkit.measure.geometry import Geometry, random_ids
from onnxkit.runtime import TensorSpec

Array = np.ndarray[Any, Any]

_SELF = (".key", ".value")
_ENCODER = (".encoder.key", ".encoder.value")
_STATES = "encoder_hidden_states"
_LEVELS, _STEP = 8, 0.125
"""Random keys and values are one of 17 numbers, exact in every float type: they compress in reference.npz."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a graph with a cache.

    Attributes:
        batch: rows.
        sequence: tokens that are new.
        past: tokens whose keys and values are given.
        padded: rows have three lengths, padded at the left (the encoder's rows: at the right).
        encoder: tokens of the encoder.
    """

    batch: int = 1
    sequence: int = 1
    past: int = 0
    padded: bool = False
    encoder: int = 9


def is_cached(specs: Sequence[TensorSpec]) -> bool:
    """Tell whether the graph takes a past of keys and values."""
    return any(spec.name.startswith("past_key_values.") for spec in specs)


def generates(model: ModelDir) -> bool:
    """Tell whether one of a model's graphs takes the keys and values of the tokens before."""
    return any(is_cached(component.inputs) for component in model.components.values())


def steps(specs: Sequence[TensorSpec], known: Geometry, longest: int) -> list[tuple[str, Step]]:
    """The calls that break exported graphs, by name; a chunk over a past is of one row, as ONNX Runtime's
    GroupQueryAttention takes no other."""
    most = longest_past(specs, known, longest)
    usual = min(16, most)
    if any(spec.name == "input_ids" and spec.shape[1] == 1 for spec in specs):
        return [
            ("decode", Step(batch=3, past=min(5, most - 1), padded=True)),
            (f"length {most}", Step(past=most - 1)),
        ]
    chunk = min(4, most)
    cases = [
        ("prefill", Step(sequence=min(11, most))),
        ("left padding", Step(batch=3, sequence=usual, padded=True)),
        ("decode", Step(batch=3, past=min(5, most - 1), padded=True)),
        ("continuation", Step(sequence=chunk, past=min(5, most - chunk))),
        (f"length {most}", Step(sequence=chunk, past=most - chunk)),
    ]
    if not any(spec.name == "attention_mask" for spec in specs):  # a decoder's rows are never padded
        cases[1] = ("padded encoder", cases[1][1])
    return cases


def longest_past(specs: Sequence[TensorSpec], known: Geometry, limit: int) -> int:
    """The most tokens, past and new, that positions and a quarter of the free memory allow."""
    a_token = sum(4 * _product(spec.shape) for spec in specs if _is_past(spec) and not _of_encoder(spec))
    # The past in both sessions or libraries, and the present that each makes of it.
    room = memory().available_bytes // 4 // (4 * max(1, a_token))
    return max(2, min(limit, known.decoder_positions or limit, room))


def cached_feeds(
    specs: Sequence[TensorSpec], known: Geometry, step: Step, rng: np.random.Generator
) -> dict[str, Array]:
    """An array for every input of `specs`: their dtypes but bfloat16, which stays float32."""
    for spec in specs:  # whisper's encoder gives one length
        if spec.name.endswith(_ENCODER) and isinstance(spec.shape[2], int):
            step = replace(step, encoder=spec.shape[2])
    tokens = _tokens(step, step.past + step.sequence, rng, left=True)
    encoder = _tokens(step, step.encoder, rng, left=False)
    masked = {"attention_mask": tokens, "encoder_attention_mask": encoder}
    decoder_only = any(spec.name == "attention_mask" for spec in specs)
    return {spec.name: _array(spec, known, step, masked, rng, decoder_only) for spec in specs}


def _tokens(step: Step, width: int, rng: np.random.Generator, *, left: bool) -> Array:
    """Bool [batch, width]: which are no padding; the last new token of a row never is any."""
    lengths = np.full(step.batch, width)
    if step.padded:
        lengths[1:] = rng.integers(1, max(2, width), step.batch - 1)
    grid = np.arange(width)
    real: Array = grid >= width - lengths[:, None] if left else grid < lengths[:, None]
    return real


def _array(
    spec: TensorSpec,
    known: Geometry,
    step: Step,
    masks: Mapping[str, Array],
    rng: np.random.Generator,
    decoder_only: bool,
) -> Array:
    new = masks["attention_mask"][:, step.past :]
    if spec.name in masks:
        return masks[spec.name].astype(np.int64)
    if spec.name in ("input_ids", "decoder_input_ids"):
        ids = random_ids(known, (step.batch, step.sequence), rng)
        return np.where(new, ids, known.pad_id) if decoder_only else ids
    if spec.name == "position_ids":
        counted = np.maximum(masks["attention_mask"].cumsum(axis=1) - 1, 0)
        positions: Array = counted[:, step.past :]
        return positions
    if spec.dtype == "bool":
        return np.full([size if isinstance(size, int) else step.batch for size in spec.shape], step.past > 0)
    values = rng.integers(-_LEVELS, _LEVELS + 1, _sizes(spec, step)) * _STEP
    return values.astype(np.float16 if spec.dtype == "float16" else np.float32)


def _sizes(spec: TensorSpec, step: Step) -> list[int]:
    """Batch first; a past's third axis and the encoder states' second one are lengths."""
    length = step.encoder if _of_encoder(spec) or spec.name == _STATES else step.past
    wanted = [step.batch, *[length] * (len(spec.shape) - 1)]
    return [have if isinstance(have, int) else want for have, want in zip(spec.shape, wanted, strict=True)]


def _is_past(spec: TensorSpec) -> bool:
    return spec.name.startswith("past_key_values.") and spec.name.endswith(_SELF)


def _of_encoder(spec: TensorSpec) -> bool:
    return spec.name.endswith(_ENCODER)


def _product(shape: Sequence[int | str | None]) -> int:
    """Of the sizes that are fixed."""
    return int(np.prod([size for size in shape if isinstance(size, int)] or [1]))
