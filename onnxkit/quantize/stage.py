"""The stage: one model directory in, a smaller and faster one out, and a report of what that cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxkit import machine
from onnxkit.artifact import (
    Invocation,
    ModelDir,
    check_apart,
    check_target,
    copy_companions,
    publish,
    seal,
)
from onnxkit.errors import UsageError
from onnxkit.graph.files import load_model, save_model
from onnxkit.progress import Progress
from onnxkit.quantize.activations import Activations, DynamicActivations, StaticActivations
from onnxkit.quantize.calibration import calibrate, without_constants
from onnxkit.quantize.check import check_runs
from onnxkit.quantize.data import MOST_COMPARED, DataSet, most_to_read, read_data, split
from onnxkit.quantize.judge import Yardstick, judge, yardstick_of, yardstick_without_data
from onnxkit.quantize.operators import Target
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.report import Calibration, Measurement, QuantizedLayer, QuantizeReport
from onnxkit.quantize.rewrite import prepare, rewrite
from onnxkit.quantize.schemes import Scheme, WeightGrids, scheme_named, weight_grids
from onnxkit.quantize.select import Selection, refuse_unsuitable, select
from onnxkit.runtime import RuntimeOptions, open_session

FILE = "model.onnx"


def quantize_model(
    source: str | Path,
    out: str | Path,
    options: QuantizeOptions | None = None,
    *,
    progress: Progress | None = None,
    invocation: Invocation | None = None,
) -> QuantizeReport:
    """Quantize a model directory and publish the result in `out`.

    Args:
        source: a model directory (ours or another tool's) or an `.onnx` file of fp32.
        out: the new directory.
        options: what to do; the defaults of `QuantizeOptions`.
        progress: is told what happens.
        invocation: how the command was called, for the history.

    Raises:
        UsageError: an unknown scheme, a pattern that matches nothing, static without calibration, `out`
            exists.
        InputError: the model is quantized or of half precision already, or a weight or sample cannot be used.
        GateFailed: the quantized model gives NaN where the input model does not.
        ResourceError: disk or memory.
    """
    started = time.perf_counter()
    options, progress = options or QuantizeOptions(), progress or Progress()
    scheme = _checked(options)
    check_apart(source, out)
    check_target(out, overwrite=options.overwrite)
    model = ModelDir.open(Path(source), task=options.task)
    job = _Job(model=model, scheme=scheme, options=options, progress=progress)
    with publish(out, overwrite=options.overwrite, need_bytes=model.size_bytes // 2) as staging:
        outcome = _write(job, staging)
        copy_companions(model, staging)
        measurement = _try_out(job, staging, outcome)
        report = _report(job, Path(out), staging, outcome, measurement, time.perf_counter() - started)
        seal(
            staging,
            task=model.task,
            components={"model": FILE},
            invocation=invocation or Invocation(stage="quantize", options=dataclasses.asdict(options)),
            parent=model,
            verified=None,
            measured=_figures(report),
        )
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What one call works on."""

    model: ModelDir
    scheme: Scheme
    options: QuantizeOptions
    progress: Progress

    @property
    def runtime(self) -> RuntimeOptions:
        """Every session of this call runs on the CPU with the threads asked for."""
        return RuntimeOptions(threads=self.options.threads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What was written, and the samples that are left to measure on."""

    selection: Selection
    layers: tuple[QuantizedLayer, ...]
    grids: WeightGrids
    calibration: Calibration | None
    held_out: DataSet | None


def _checked(options: QuantizeOptions) -> Scheme:
    scheme = scheme_named(options.scheme)
    if scheme.needs_calibration and options.calibration is None:
        raise UsageError(
            f"{scheme.name} needs a calibration set (--calibration FILE): samples of what it will see; "
            "int8-dynamic works without one"
        )
    if options.samples < 1:
        raise UsageError(f"--samples {options.samples}: at least 1")
    if options.eval is not None and not options.measure:
        raise UsageError("--eval and --no-measure exclude one another")
    if not scheme.needs_calibration and options.calibration is not None and not _holds_out(options):
        raise UsageError(f"{scheme.name} takes no calibration set: leave --calibration away")
    return scheme


def _holds_out(options: QuantizeOptions) -> bool:
    """Whether a part of the calibration set is what the result is measured on."""
    return options.measure and options.eval is None


def _write(job: _Job, staging: Path) -> _Outcome:
    """Select, calibrate, rewrite and save."""
    path = job.model.model_file
    graph = load_model(path)
    refuse_unsuitable(graph, str(path))
    graph = prepare(graph, str(path))
    selection = select(graph, job.scheme, job.options)
    data, held_out = _samples(job)
    grids = weight_grids(machine.cpu())
    job.progress.note(f"{job.scheme.name}: {len(selection.targets)} layers; weights: {grids.reason}")
    activations: Activations = DynamicActivations()
    calibration = None
    if data is not None:
        scratch = staging / ".calibration"
        ranges, calibration = calibrate(path, selection, data, scratch, job.runtime, job.progress)
        selection = without_constants(selection, ranges)
        activations = StaticActivations(ranges)
    layers = tuple(_layer(target) for target in selection.targets)  # rewriting empties the nodes
    rewrite(graph, selection.targets, activations, grids=grids, per_channel=job.options.per_channel)
    save_model(graph, staging / FILE)
    return _Outcome(
        selection=selection, layers=layers, grids=grids, calibration=calibration, held_out=held_out
    )


def _layer(target: Target) -> QuantizedLayer:
    return QuantizedLayer(name=target.name, op_type=target.node.op_type, parameters=target.parameters)


def _samples(job: _Job) -> tuple[DataSet | None, DataSet | None]:
    """Return the samples to calibrate with and those kept out to measure on; None where there are none."""
    options = job.options
    if options.calibration is None:
        return None, None
    hold_out = _holds_out(options)
    static = job.scheme.needs_calibration
    most = most_to_read(options.samples, hold_out=hold_out) if static else options.samples
    data = _read(job, options.calibration, most)
    if not static:
        return None, data
    parts = split(data, samples=options.samples, hold_out=hold_out, seed=options.seed)
    return parts.calibration, parts.held_out


def _read(job: _Job, path: Path, most: int) -> DataSet:
    options = job.options
    return read_data(
        path, job.model, most=most, columns=options.columns, seed=options.seed, task=options.task
    )


def _try_out(job: _Job, staging: Path, outcome: _Outcome) -> Measurement | None:
    """Load and run the result; compare it with the input model unless told not to."""
    written = staging / FILE
    source, result = open_session(job.model.model_file, job.runtime), open_session(written, job.runtime)
    yardstick = _yardstick(job, outcome)
    check_runs(source, result, yardstick.cases[:2], written, [layer.name for layer in outcome.layers])
    if not job.options.measure:
        job.progress.note("accuracy and speed were not measured (--no-measure)")
        return None
    measurement = judge(
        source,
        result,
        job.model,
        staging,
        yardstick,
        columns=job.options.columns,
        runtime=job.runtime,
        seed=job.options.seed,
        progress=job.progress,
    )
    _comment(measurement, job.progress)
    return measurement


def _yardstick(job: _Job, outcome: _Outcome) -> Yardstick:
    options, held_out = job.options, outcome.held_out
    if options.eval is not None:
        name = str(options.eval)
        if outcome.calibration is not None and _same_file(options.eval, options.calibration):
            name += ", the calibration set itself"
            job.progress.warn(
                "--eval is the calibration set itself: leave it away, and a part is kept out of it"
            )
        data = _read(job, options.eval, MOST_COMPARED)
        return yardstick_of(data, name, job.progress, file=options.eval)
    if held_out is not None:
        kept = ", kept out of calibration" if outcome.calibration is not None else ""
        return yardstick_of(held_out, f"{held_out.source}{kept}", job.progress)
    yardstick = yardstick_without_data(job.model, options.seed)
    if options.measure:
        job.progress.warn(
            f"accuracy is measured on {yardstick.name}, which says little about real data: pass --eval"
        )
    return yardstick


def _same_file(one: Path, other: Path | None) -> bool:
    return other is not None and one.exists() and other.exists() and one.samefile(other)


def _comment(measurement: Measurement, progress: Progress) -> None:
    """Warn of a result that is slower than its input."""
    speed = measurement.speed
    if speed.ratio > 1.0:
        noise = " (within the noise of the measurement)" if speed.ratio - speed.ratio_error <= 1.0 else ""
        progress.warn(
            f"the quantized model is slower than its input: {speed.after_ms:.2f} ms against"
            f" {speed.before_ms:.2f} ms for {speed.shape}, {speed.ratio:.2f} times as long{noise}"
        )


def _report(
    job: _Job, out: Path, staging: Path, outcome: _Outcome, measurement: Measurement | None, seconds: float
) -> QuantizeReport:
    after = sum(path.stat().st_size for path in staging.glob(f"{FILE}*"))
    cpu = machine.cpu()
    return QuantizeReport(
        out=str(out),
        scheme=job.scheme.name,
        weight_bits=8,
        weight_grid=outcome.grids.products,
        weight_grid_reason=outcome.grids.reason,
        cpu=f"{cpu.model} ({', '.join(cpu.isa)})",
        per_channel=job.options.per_channel,
        calibration=outcome.calibration,
        quantized=outcome.layers,
        kept=outcome.selection.kept,
        size_before_bytes=job.model.size_bytes,
        size_after_bytes=after,
        size_ratio=after / job.model.size_bytes,
        measurement=measurement,
        seconds=seconds,
    )


def _figures(report: QuantizeReport) -> Mapping[str, Any]:
    """What the history keeps: the whole report but the lists of layers and the place."""
    plain = report.to_dict()
    layers = {"quantized_layers": len(plain.pop("quantized")), "kept_layers": len(plain.pop("kept"))}
    plain.pop("out")
    return {**plain, **layers}
