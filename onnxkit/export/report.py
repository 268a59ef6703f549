"""What an export is asked for, and what it says when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxkit.artifact import Verification
from onnxkit.report import Report
from onnxkit.runtime import TensorSpec

ExporterName = Literal["auto", "trace", "native"]
DtypeName = Literal["fp32", "fp16", "bf16"]
LevelName = Literal["L1", "L2", "L3"]
LayoutName = Literal["onnxkit", "optimum"]

CHECKPOINT = "the checkpoint"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export.

    Attributes:
        task: a pipeline name or a synonym; "auto" asks the checkpoint.
        exporter: "trace" takes levels L1 and L2 only, "native" L3 only.
        dtype: type of weights and computation. Graph inputs and outputs stay float32, so that every
            client can feed all three alike; only a cache has this type, too.
        layout: of an encoder-decoder: an encoder and one decoder ("onnxkit"), or the three graphs of
            optimum's runtime and the browser's ("optimum"); either over one weights file.
        opset: 18 up to what the installed ONNX Runtime takes.
        verify: compare with PyTorch on new shapes before anything is published.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read `.bin` weights (with `weights_only`).
        revision, subfolder, token, offline: for a Hub id: branch, tag or commit; folder in the
            repository or directory; access token; use the cache only.
        adapter: directory of a LoRA adapter (peft) to merge into the weights.
        genai_config: write the genai_config.json that onnxruntime-genai needs (text-generation only).
        keep_quantization: products read the blocks of a quantized checkpoint (AWQ, GPTQ, GGUF) as they are,
            instead of dequantized weights.
        accuracy_level: what those products compute in: 0 or 1 float32; 4, the default, int8 (activations are
            rounded block by block), for which CPUs have fast kernels. The check with PyTorch is always in
            float32.
        overwrite: replace an existing output directory.
        seed: of the inputs that the check uses.
    """

    task: str = "auto"
    exporter: ExporterName = "auto"
    dtype: DtypeName = "fp32"
    opset: int = 18
    verify: bool = True
    trust_remote_code: bool = False
    allow_pickle: bool = False
    revision: str | None = None
    subfolder: str = ""
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    adapter: Path | None = None
    layout: LayoutName = "onnxkit"
    genai_config: bool = False
    keep_quantization: bool = False
    accuracy_level: int | None = None
    overwrite: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LevelTrial:
    """One level that was tried, and what came of it.

    Attributes:
        part: the graph that it was for: "model", "encoder", "decoder" or "decoder_with_past".
        level: L1 (hooks, no decompositions), L2 (hooks and torch's decompositions), L3 (transformers'
            own exporter).
        reason: why it was taken or given up.
        attentions: attention operators in the trace; None for L3 and where the trace failed.
        attention_calls: calls of attention modules while tracing; `attentions` is less where some hold none.
    """

    part: str = "model"
    level: LevelName
    accepted: bool
    reason: str
    attentions: int | None = None
    attention_calls: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedOutput:
    """Agreement with PyTorch of one output on one case; `relative` is max_abs over the largest reference."""

    part: str
    case: str
    output: str
    max_abs: float
    relative: float
    cosine: float
    finite: bool


@dataclass(frozen=True, kw_only=True)
class GenerationCheck:
    """Greedy generation on ONNX Runtime, equal to transformers' `generate` in float32.

    Attributes:
        tokens, rows: new tokens a row, and rows.
        near_ties: of the rows that part from transformers', the step where they do: there the best two logits
            are closer than the tolerance.
    """

    tokens: int
    rows: int
    near_ties: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file of the new directory."""

    name: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """One graph of the new directory.

    Attributes:
        part: the manifest's component.
        level: the level taken.
        regions: semantic regions in the graph, by operator.
        nodes, parameters: parameters counts elements of all initializers, also of those that graphs share.
    """

    part: str
    file: str
    level: LevelName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    regions: Mapping[str, int]
    nodes: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class KeptQuantization:
    """The quantization of the checkpoint that the graphs read as it is.

    Attributes:
        format: of the checkpoint, in plain words.
        weights: how many are in blocks, those that graphs share once.
        parameters: elements of them.
        bits_per_weight: all that is stored for them: codes, scales, zero points, minimums.
        bits: how many weights have codes of so many bits.
        floats: quantized weights that stand dequantized, and why.
        accuracy_level: what the products compute in, see `ExportOptions`.
    """

    format: str
    weights: int
    parameters: int
    bits_per_weight: float
    bits: Mapping[int, int]
    floats: Mapping[str, str]
    accuracy_level: int


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """Result of `export_model`.

    Attributes:
        source: the checkpoint as it was named.
        commit: the Hub commit that it resolved to; None for a directory.
        model_class: the transformers class that was exported.
        level: the level taken, of several graphs the highest; None when every level failed (then this
            report comes with the error). `level_reason` is why; `trials` tells of every graph.
        graphs: what was written.
        size_bytes: graphs and weights; `files` lists every file.
        seconds: wall seconds by phase: import, load, trace, convert, write, verify. `total_s` leaves
            verify out.
        verification: None when there was none (`verify=False`).
        checks: every output of every case of the last check.
        checked: what was compared with PyTorch: the checkpoint, or its first layers where memory is short.
        generation: of a generating model in float32.
        kept: None where `keep_quantization` was not asked for.
    """

    source: str
    commit: str | None
    out: str
    task: str
    model_class: str
    dtype: DtypeName
    opset: int
    level: LevelName | None
    level_reason: str
    trials: tuple[LevelTrial, ...]
    graphs: tuple[ExportedGraph, ...]
    files: tuple[OutputFile, ...]
    size_bytes: int
    seconds: Mapping[str, float]
    total_s: float
    verification: Verification | None
    checks: tuple[CheckedOutput, ...]
    checked: str = CHECKPOINT
    generation: GenerationCheck | None = None
    kept: KeptQuantization | None = None
