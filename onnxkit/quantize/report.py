"""What `quantize_model` returns."""

from __future__ import annotations

import dataclasses

from onnxkit.measure.divergence import Divergence
from onnxkit.quantize.search.gate import Attempt
from onnxkit.quantize.search.quality import SliceDrop
from onnxkit.report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A node that was quantized.

    Attributes:
        parameters: elements of its weight.
        format: what it became, in plain words.
        bits_per_weight: scales and zero points included.
        shares: the layer, listed before, whose stored weight it reads; None: it has one of its own.
    """

    name: str
    op_type: str
    parameters: int
    format: str
    bits_per_weight: float
    component: str = "model"
    shares: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptLayer:
    """A node that stayed float although its operator can be quantized, and why."""

    name: str
    op_type: str
    reason: str
    component: str = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was learned from a calibration set.

    Attributes:
        samples: how many were run; `available`: how many the set holds.
        method: the calibrator; "statistics" where no ranges were asked for.
        distinct: how many samples differ; None: not looked at.
        widening: mean relative growth of the ranges over the last half of the samples.
        seconds: time of the calibration runs.
    """

    source: str
    samples: int
    available: int
    method: str
    distinct: int | None
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

    `samples` are those of `measured_on`, whose outputs were compared; the metric says how many it rests on.
    `slices` are the classes, languages or slices that lost most, the most first. Of a model that generates,
    `text` is what the metric and the `divergence` were taken on, `speed` that of one token, and `prompt` that
    of the prompt or the encoder before it.
    """

    measured_on: str
    samples: int
    text: str | None = None
    agreement: tuple[OutputAgreement, ...]
    metric: MetricChange | None
    slices: tuple[SliceDrop, ...] = ()
    divergence: Divergence | None = None
    speed: SpeedChange
    prompt: SpeedChange | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeReport(Report):
    """Result of `quantize_model`. Sizes are of the ONNX files with their weights.

    Attributes:
        bits_per_weight: on average over the quantized weights, scales and zero points included; one that
            several layers share counts once.
        hardware: the machine that the result is for.
        hardware_reason: how 8-bit weights become integers for it, and why.
        converted: nodes that compute in half precision; None in other schemes.
        attempts: what a search measured against the limits, in order.
    """

    out: str
    scheme: str
    weight_bits: int
    bits_per_weight: float
    hardware: str
    hardware_reason: str
    calibration: Calibration | None
    converted: int | None
    attempts: tuple[Attempt, ...]
    quantized: tuple[QuantizedLayer, ...]
    kept: tuple[KeptLayer, ...]
    size_before_bytes: int
    size_after_bytes: int
    size_ratio: float
    measurement: Measurement | None
    seconds: float
