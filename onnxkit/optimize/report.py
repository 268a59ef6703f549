"""What `optimize_model` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxkit.report import Report


@dataclass(frozen=True, kw_only=True)
class KeptRegions:
    """Regions that stay primitive.

    Attributes:
        op: "attention", "rotary", "gelu", …
        reason: why no lowering fits.
        count: how many.
    """

    op: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class DroppedFusion:
    """A fusion that was made, failed the check, and was left out.

    Attributes:
        name: of the lowering or fusion.
        worst: the largest relative difference with it.
        case: the input where it was found.
        output: the output where it was found.
    """

    name: str
    worst: float
    case: str
    output: str


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The comparison of the result with its input.

    Attributes:
        passed: within the tolerance on every case.
        tolerance: allowed largest difference over the largest reference value.
        worst: the largest that was found, same unit.
        case: the input where it was found.
        output: the output where it was found.
        cases: names of all inputs that were compared.
        provider: the provider that the result ran on.
    """

    passed: bool
    tolerance: float
    worst: float
    case: str
    output: str
    cases: tuple[str, ...]
    provider: str


@dataclass(frozen=True, kw_only=True)
class SpeedRatio:
    """Time of the result as a multiple of its input's, measured in turns.

    Attributes:
        case: the input that was timed.
        before_ms: median time of the input model.
        after_ms: median time of the result.
        ratio: median over rounds of after / before.
        error: standard error of the ratio of means.
        slower: whether the result is slower by more than noise.
        threads: of both sessions.
    """

    case: str
    before_ms: float
    after_ms: float
    ratio: float
    error: float
    slower: bool
    threads: int


@dataclass(frozen=True, kw_only=True)
class ComponentChange:
    """What became of one graph.

    Attributes:
        name: the component ("model").
        nodes_before, nodes_after: nodes by operator type.
        fused: ONNX Runtime's own operators in the result, by type.
        lowered: regions and patterns that were rewritten, by the name of the fusion.
        kept: regions that stay primitive, and why.
        dropped: fusions that failed the check.
        kept_float32: names of nodes that `-O4` left in float32 although their type allows float16.
        recognized: whether regions were recognized by structure (a foreign graph) rather than read.
        shared_cache: whether the past's keys and values may stand in buffers longer than what they hold.
        check: the comparison with the input.
        speed: the time ratio, or None where it was not measured.
    """

    name: str
    nodes_before: Mapping[str, int]
    nodes_after: Mapping[str, int]
    fused: Mapping[str, int]
    lowered: Mapping[str, int]
    kept: tuple[KeptRegions, ...]
    dropped: tuple[DroppedFusion, ...]
    kept_float32: tuple[str, ...]
    recognized: bool
    shared_cache: bool
    check: CheckResult
    speed: SpeedRatio | None


@dataclass(frozen=True, kw_only=True)
class OptimizeReport(Report):
    """What `optimize` did.

    Attributes:
        source, out: the two directories.
        task: task name.
        level: 0 to 4.
        provider: full name of the provider that the graph is written for.
        components: one entry a graph.
        size_before_bytes, size_after_bytes: graphs and their weights, companions not counted.
        seconds: wall time of the whole stage, checks and timing included.
    """

    source: str
    out: str
    task: str
    level: int
    provider: str
    components: tuple[ComponentChange, ...]
    size_before_bytes: int
    size_after_bytes: int
    seconds: float
