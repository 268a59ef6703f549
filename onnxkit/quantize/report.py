"""What `quantize_model` returns."""

from __future__ import annotations

import dataclasses

from onnxkit.quantize.blockwise import Blocks
from onnxkit.report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A node that now computes with integers. `parameters` counts the elements of its weight."""

    name: str
    op_type: str
    parameters: int
    component: str = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptLayer:
    """A node that stayed float although its operator can be quantized, and why."""

    name: str
    op_type: str
    reason: str
    component: str = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the ranges of a static scheme come from.

    Attributes:
        samples: how many were run; `available`: how many the set holds.
        method: the calibrator.
        distinct: how many samples differ.
        widening: mean relative growth of the ranges over the last half of the samples.
        seconds: time of the calibration runs.
    """

    source: str
    samples: int
    available: int
    method: str
    distinct: int
    widening: float | None
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputAgreement:
    """One graph output against the input model, over all samples.

    `cosine` is the mean over vectors (last axis; every valid token or row counts once); `sqnr_db` is
    the ratio of signal to noise power (that of several batches is joined by their positions).
    """

    output: str
    cosine: float
    sqnr_db: float
    max_abs: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricChange:
    """The task's metric before and after, on the same labelled samples."""

    name: str
    before: float
    after: float
    samples: int
    higher_is_better: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedChange:
    """Time of one run against the input model's, interleaved. `ratio` below 1 is faster."""

    shape: str
    before_ms: float
    after_ms: float
    ratio: float
    ratio_error: float
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Accuracy and speed of the result against the input model.

    `samples` are those whose outputs were compared; the metric says how many it rests on.
    """

    measured_on: str
    samples: int
    agreement: tuple[OutputAgreement, ...]
    metric: MetricChange | None
    speed: SpeedChange


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeReport(Report):
    """Result of `quantize_model`. Sizes are of the ONNX files with their weights.

    `weight_grid` is how the scale of a matrix product's channel follows from its weights (`weights.Grid`);
    "blocks" for a weight-only scheme, of which `blocks` says the rest.
    """

    out: str
    scheme: str
    weight_bits: int
    weight_grid: str
    weight_grid_reason: str
    cpu: str
    per_channel: bool
    blocks: Blocks | None
    calibration: Calibration | None
    quantized: tuple[QuantizedLayer, ...]
    kept: tuple[KeptLayer, ...]
    size_before_bytes: int
    size_after_bytes: int
    size_ratio: float
    measurement: Measurement | None
    seconds: float
