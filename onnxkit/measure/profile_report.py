"""What `profile` is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxkit.measure.cases import Padding
from onnxkit.measure.latency import DEFAULT_WARMUP, Caution, Ratio, Summary
from onnxkit.measure.operators import OperatorTime
from onnxkit.measure.settings import MachineFacts, SessionFacts
from onnxkit.report import Report
from onnxkit.runtime import GraphOptimization


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What to measure: every combination of model, provider, threads, batch and sequence.

    Attributes:
        eps: execution providers; ep_options: options of the providers that are not the CPU.
        batch: batch sizes; None takes 1, or the graph's fixed one.
        inputs: an .npz file with an array for each input: measured on it, instead of on shapes.
        sequence: tokens a sample, padding included; None takes 128, or the graph's fixed one.
        prefill, depth: of models that generate: lengths of prompts, and tokens that the cache holds before a
            step; None takes usual ones that fit the context.
        threads: thread counts; None takes the usable cores.
        runs, seconds: how long each combination is measured; one of them; neither is one second.
        warmup: runs after the first that do not count.
        padding: which side the shorter samples of a batch are padded on; "none": all equally long.
        operators: whether to add per-operator tables (a second loading of the model).
        trace: where to keep ONNX Runtime's trace (opens in Perfetto); one model and setting only.
    """

    eps: tuple[str, ...] = ("cpu",)
    ep_options: Mapping[str, str] = field(default_factory=dict)
    batch: tuple[int, ...] | None = None
    inputs: Path | None = None
    sequence: tuple[int, ...] | None = None
    prefill: tuple[int, ...] | None = None
    depth: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None
    runs: int | None = None
    seconds: float | None = None
    warmup: int = DEFAULT_WARMUP
    padding: Padding = "none"
    graph_optimization: GraphOptimization = "all"
    operators: bool = True
    trace: Path | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One shape on one model and setting.

    Attributes:
        phase: of models that generate: "prefill" (a run computes a prompt of `sequence` tokens a row and its
            first token: the time to first token) or "decode" (a run is one step over a cache of `sequence`
            tokens a row); None for other models.
        batch, sequence: the shape; sequence is None where it does not apply.
        tokens: real tokens in a run, padding left out; None where there are none.
        latency: of one run; the first run and warm-up are not in it.
        samples_per_s, tokens_per_s: from the mean latency.
        first_run_ms: the first run of this shape.
        peak_memory_bytes: most resident memory of the measuring process so far, everything included
            (Python, ONNX Runtime, weights); smaller shapes are measured first.
        bandwidth_share: of a step: the bytes of weights and of the decoder's own keys and values that it must
            read over those that the machine could have read meanwhile, 0 to about 1; None elsewhere.
        ratio: to the first model and setting at the same shape; None for that one itself.
        operators: time by operator, the slowest first.
        cautions: what speaks against trusting the figures.
    """

    phase: Literal["prefill", "decode"] | None = None
    batch: int
    sequence: int | None
    tokens: int | None
    latency: Summary
    samples_per_s: float
    tokens_per_s: float | None
    first_run_ms: float
    peak_memory_bytes: int
    bandwidth_share: float | None = None
    ratio: Ratio | None
    operators: tuple[OperatorTime, ...]
    cautions: tuple[Caution, ...]


@dataclass(frozen=True, kw_only=True)
class GenerationFacts:
    """What holds for every measurement of a model that generates.

    Attributes:
        context: tokens that a sequence can have at most; None where nothing limits it.
        cache_bytes_per_token: keys and values of one token of one row, all layers.
        cache_bytes: of a row that fills the context; None without a limit.
        shared_cache: whether one buffer is past and present (`optimize` makes graphs that can).
        weights_read_bytes: what a step reads of the weights.
        memory_read_bytes_per_s: what this machine reads at best with as many threads, measured.
    """

    context: int | None
    cache_bytes_per_token: int
    cache_bytes: int | None
    shared_cache: bool
    weights_read_bytes: int
    memory_read_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """One model on one provider with one number of threads.

    Attributes:
        generation: what models that generate have besides; None for others.
        start_memory_bytes: resident memory of the measuring process before it loaded the model.
        trace: the trace that was asked for.
    """

    path: str
    task: str
    size_bytes: int
    ep: str
    session: SessionFacts
    start_memory_bytes: int
    measurements: tuple[Measurement, ...]
    trace: str | None
    generation: GenerationFacts | None = None


@dataclass(frozen=True, kw_only=True)
class ProfileReport(Report):
    """All profiles, the machine, and what the figures exclude."""

    models: tuple[ModelProfile, ...]
    machine: MachineFacts
    excluded: str
    notes: tuple[str, ...]
