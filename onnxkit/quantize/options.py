"""What the caller may choose, and which of it applies to which scheme."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from onnxkit.errors import UsageError, suggestion
from onnxkit.quantize.formats import ACCURACY_LEVELS, BLOCK_SIZES, Algorithm
from onnxkit.quantize.schemes import SCHEMES, Scheme, scheme_named, taking

RANDOM = "random"
"""The calibration set that is made up; only when asked for by this word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options of `quantize_model`. Not every scheme takes every one: see `schemes.SCHEMES`.

    Attributes:
        scheme: a key of `schemes.SCHEMES`.
        calibration: samples (text, table, folder of images), raw tensors (npz, folder of npz), or "random".
        calibration_cache: a file that keeps ranges, smoothing and statistics of channels for the next time.
        calibrator: how a range follows from what was seen (`calibrators.CALIBRATORS`); None: its default.
        samples: how many samples of the calibration set are used at most; what is kept out of it to
            measure on is not counted.
        max_length: tokens of a sample that are used at most; None: what the model takes.
        format: how static integers are written: "qoperator" (ONNX Runtime's operators, the fastest there;
            the default) or "qdq" (standard operators, which other runtimes read, too).
        per_channel: one weight scale per output channel instead of one per tensor.
        smooth_quant: "auto" (alpha searched; the default with a calibration set), "off", or alpha.
        bias_correction: add back the mean of the error that a layer's output gets.
        algorithm: how the codes of blocks are found (`blocks.ALGORITHMS`); None: the best for the data.
            Integer schemes take "rtn" (to the nearest) and "gptq" (the default with a calibration set).
        block_size: weights that share a scale; None: 32.
        symmetric: no zero points; None: with 8 bits only.
        accuracy_level: what a product of blocks computes in (`formats.BlockFormat`); None: 4, int8.
        embeddings: what becomes of tables, and of an output head: "keep" (tables stay float), "int8" (the
            default) or "int4". A head tied to its table shares the table's bytes.
        bits_per_weight: what a mixed scheme may spend on average, tables and head included.
        include: regular expressions; when given, only nodes whose name matches one are quantized, and
            the policies that keep a sensitive layer float do not hold for them.
        exclude: regular expressions; nodes whose name matches one stay float.
        exclude_from: a file with names of nodes that stay float, one a line, as `analyze` writes it.
        op_types: operator types to quantize; empty means the defaults of `operators.OPERATORS`.
        max_drop: points that the task's metric may lose; layers are released until it holds.
        min_cosine: the least cosine of an output with the input model's.
        max_kl: the largest mean KL divergence of the next token's distribution, nats.
        max_worst_slice: points that the worst class or language may lose.
        target: the machine that the result is for (`hardware.TARGETS`); None: this one.
        eval: samples on which accuracy and speed are measured.
        measure: compare the result with the input model (accuracy, speed).
        genai_config: write the configuration of onnxruntime-genai, too; one that is there is fitted anyway.
        columns: our column name -> the file's column name.
        task: overrides the task that the directory names.
        overwrite: replace an existing output.
        seed: of the choice of samples and of random cases.
        threads: for every session; None means the usable cores.
    """

    scheme: str = "int8-dynamic"
    calibration: Path | str | None = None
    calibration_cache: Path | None = None
    calibrator: str | None = None
    samples: int = 128
    max_length: int | None = None
    format: str | None = None
    per_channel: bool = True
    smooth_quant: str | float | None = None
    bias_correction: bool = False
    algorithm: Algorithm | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    accuracy_level: int | None = None
    embeddings: str | None = None
    bits_per_weight: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_from: Path | None = None
    op_types: tuple[str, ...] = ()
    max_drop: float | None = None
    min_cosine: float | None = None
    max_kl: float | None = None
    max_worst_slice: float | None = None
    target: str | None = None
    eval: Path | None = None
    measure: bool = True
    genai_config: bool = False
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    task: str | None = None
    overwrite: bool = False
    seed: int = 0
    threads: int | None = None

    @property
    def gated(self) -> bool:
        """Whether a limit was set that the result must keep."""
        limits = (self.max_drop, self.min_cosine, self.max_kl, self.max_worst_slice)
        return any(limit is not None for limit in limits)

    @property
    def searches(self) -> bool:
        """Whether variants are measured to find the formats."""
        return self.gated or self.scheme == "mixed"


_FLAGS = {"symmetric": "--symmetric/--asymmetric", "per_channel": "--per-tensor"}

_CHOICES: Mapping[str, Sequence[object]] = {
    "format": ("qoperator", "qdq"),
    "algorithm": get_args(Algorithm),
    "block_size": BLOCK_SIZES,
    "accuracy_level": ACCURACY_LEVELS,
    "embeddings": ("keep", "int8", "int4"),
}

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "samples": (1, math.inf),
    "max_length": (1, math.inf),
    "bits_per_weight": (2, 32),
    "max_drop": (0, math.inf),
    "min_cosine": (-1, 1),
    "max_kl": (0, math.inf),
    "max_worst_slice": (0, math.inf),
}


def flag(option: str) -> str:
    """How the command line spells an option."""
    return _FLAGS.get(option, "--" + option.replace("_", "-"))


def checked(options: QuantizeOptions, *, analyze: bool = False) -> Scheme:
    """Return the scheme's row once the options are known to fit it and one another.

    Args:
        options: what the caller chose.
        analyze: whether layers are to be measured one by one, and nothing written.

    Raises:
        UsageError: an unknown scheme or value, an option that the scheme does not take, two that exclude
            one another.
    """
    scheme = scheme_named(options.scheme)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default if field.default is not dataclasses.MISSING else {}
        takers = taking(field.name)
        measured_on = field.name in ("calibration", "samples", "max_length") and holds_out(options)
        if value != default and takers and scheme.name not in takers and not measured_on:
            raise UsageError(_does_not_apply(field.name, scheme.name, takers))
        _check_value(field.name, value)
    _check_smoothing(options.smooth_quant)
    if analyze:
        _check_analysis(options, scheme)
    _check_together(options, scheme)
    return scheme


def holds_out(options: QuantizeOptions) -> bool:
    """Whether a part of the calibration set is what is measured on: the result, or the layers of a search."""
    return options.eval is None and (options.measure or options.searches)


def _does_not_apply(option: str, scheme: str, takers: Sequence[str]) -> str:
    if option == "calibration":
        return f"{scheme} takes no calibration set: leave --calibration away"
    if set(takers) == set(SCHEMES) - {"fp16", "bf16"}:
        return f"{flag(option)} does not apply to {scheme}, which changes the whole graph"
    named = f"{', '.join(takers[:-1])} and {takers[-1]}" if len(takers) > 1 else takers[0]
    return f"{flag(option)} applies to {named}, not to {scheme}"


def _check_value(option: str, value: object) -> None:
    if value is None:
        return
    choices = _CHOICES.get(option)
    if choices is not None and value not in choices:
        texts = [str(choice) for choice in choices]
        hint = suggestion(value, texts) if isinstance(value, str) else f"one of {', '.join(texts)}"
        raise UsageError(f"{flag(option)} {value}: {hint}")
    low, high = _BOUNDS.get(option, (0, 0))
    if low != high and not (isinstance(value, int | float) and low <= value <= high):
        allowed = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise UsageError(f"{flag(option)} {value}: {allowed}")


def _check_smoothing(value: str | float | None) -> None:
    if value is None or value in ("auto", "off"):
        return
    if isinstance(value, str) or not 0.0 <= value <= 1.0:
        raise UsageError(f"--smooth-quant {value}: auto, off or a number from 0 to 1")


def _check_together(options: QuantizeOptions, scheme: Scheme) -> None:
    if scheme.needs_calibration and options.calibration is None:
        raise UsageError(
            f"{scheme.name} needs a calibration set (--calibration FILE): samples of what it will see; "
            "int8-dynamic works without one"
        )
    if options.eval is not None and not options.measure:
        raise UsageError("--eval and --no-measure exclude one another")
    if options.gated and not options.measure:
        raise UsageError("a limit is measured: leave --no-measure away")
    if scheme.family == "integer" and options.algorithm not in (None, "rtn", "gptq"):
        raise UsageError(f"--algorithm {options.algorithm}: {scheme.name} takes rtn or gptq")
    if scheme.family == "mixed" and options.bits_per_weight is None and not options.gated:
        raise UsageError("mixed needs a goal: --bits-per-weight, or a limit such as --max-drop or --max-kl")
    if options.calibration is None:
        for option in ("calibration_cache", "bias_correction"):
            if getattr(options, option):
                raise UsageError(f"{flag(option)} needs a calibration set (--calibration FILE)")
        if options.algorithm in ("gptq", "awq"):
            raise UsageError(f"--algorithm {options.algorithm} needs a calibration set (--calibration FILE)")
        if options.smooth_quant not in (None, "off"):
            raise UsageError("--smooth-quant needs a calibration set (--calibration FILE)")


def _check_analysis(options: QuantizeOptions, scheme: Scheme) -> None:
    if options.gated:
        raise UsageError("--analyze measures layers and quantizes nothing: a limit does not apply to it")
    if options.genai_config:
        raise UsageError("--analyze writes no model: leave --genai-config away")
    if not options.measure:
        raise UsageError("--analyze and --no-measure exclude one another")
    if scheme.way is None:
        raise UsageError(f"--analyze does not apply to {scheme.name}, which changes the whole graph")
    if scheme.family == "mixed":
        raise UsageError("--analyze takes one format for all layers: int4-weight, which mixed begins with")
