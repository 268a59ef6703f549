"""What `profile` measures of models that generate: prompts of several lengths, steps at several depths.

The habit is llama-bench's (github.com/ggml-org/llama.cpp, tools/llama-bench): a prompt is computed whole, a
step decodes one token a row over a cache of so many tokens, and both choose the best token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxkit.artifact import ModelDir
from onnxkit.errors import UsageError
from onnxkit.generate.budget import context_limit, encoder_limit
from onnxkit.measure.children import Child
from onnxkit.measure.memory_speed import weights_read
from onnxkit.measure.profile_report import GenerationFacts, ProfileOptions
from onnxkit.safety import read_model

WORKER = "onnxkit.measure.generation_worker"
STEPS = 16
"""Steps that one timed run decodes."""

_PROMPTS = (128, 512)
_DEPTHS = (32, 512)
_DECODERS = ("decoder_with_past", "decoder", "model")

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One thing to time.

    Attributes:
        phase: a prompt, or a step.
        batch: rows.
        tokens: of each row: the prompt's (of an encoder-decoder: the encoder's), or those that the cache
            holds before the steps.
    """

    phase: Phase
    batch: int
    tokens: int


def workloads(model: ModelDir, options: ProfileOptions) -> tuple[Workload, ...]:
    """Return what to time, the prompts first, the small ones first.

    Raises:
        UsageError: a length that the model's context cannot hold, an option that does not apply.
    """
    if options.sequence is not None:
        raise UsageError(f"{model.path}: --sequence does not apply: the model generates (--prefill, --depth)")
    if options.padding != "none":
        raise UsageError(f"{model.path}: --padding does not apply: the model generates")
    limit = context_limit(model.config)
    encoder = model.components.get("encoder")
    read = limit if encoder is None else encoder_limit(model.config)
    prompts = _lengths(model, options.prefill, _PROMPTS, read, "--prefill")
    if encoder is not None and not any(spec.name == "input_ids" for spec in encoder.inputs):
        if options.prefill is not None:
            raise UsageError(f"{model.path}: --prefill does not apply: its encoder reads no tokens")
        prompts = (1,)
    room = None if limit is None else limit - STEPS - 1
    depths = _lengths(model, options.depth, _DEPTHS, room, "--depth")
    lengths: tuple[tuple[Phase, tuple[int, ...]], ...] = (("prefill", prompts), ("decode", depths))
    return tuple(
        Workload(phase=phase, batch=batch, tokens=tokens)
        for phase, several in lengths
        for batch in sorted(set(options.batch or (1,)))
        for tokens in sorted(set(several))
    )


def generation_facts(model: ModelDir, reply: dict[str, int], read_bytes_per_s: float) -> GenerationFacts:
    """Put together what holds for all workloads of a model; `reply` is the worker's answer to `open`."""
    name = next(name for name in _DECODERS if name in model.components)
    graph = model.path / model.components[name].file
    limit = context_limit(model.config)
    per_token = int(reply["cache_bytes_per_token"])
    return GenerationFacts(
        context=limit,
        cache_bytes_per_token=per_token,
        cache_bytes=None if limit is None else limit * per_token,
        shared_cache=bool(reply["shared_cache"]),
        weights_read_bytes=weights_read(read_model(graph)),
        memory_read_bytes_per_s=read_bytes_per_s,
    )


def measured_bandwidth(threads: int) -> float:
    """Measure how many bytes a second this machine reads, in a process of its own."""
    with Child("memory", module=WORKER) as child:
        return float(child.ask("bandwidth", threads=threads)["bytes_per_s"])


def bandwidth_share(facts: GenerationFacts, workload: Workload, step_ms: float) -> float | None:
    """Bytes that a decoding step must read over those that the machine could have read meanwhile."""
    if workload.phase != "decode":
        return None
    cache = workload.batch * workload.tokens * facts.cache_bytes_per_token
    return (facts.weights_read_bytes + cache) / (facts.memory_read_bytes_per_s * step_ms / 1e3)


def _lengths(
    model: ModelDir, asked: Sequence[int] | None, usual: Sequence[int], limit: int | None, name: str
) -> tuple[int, ...]:
    """Return the lengths that were asked for, or the usual ones that fit."""
    if asked is None:
        return tuple(n for n in usual if limit is None or n <= limit) or (max(1, limit or 1),)
    for length in asked:
        if length < 1 or (limit is not None and length > limit):
            room = "at least 1" if limit is None else f"1 to {limit}"
            raise UsageError(f"{model.path}: {name} {length}: {room}")
    return tuple(asked)
