"""The stage: one model directory in, a smaller and faster one out, and a report of what that cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

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
from onnxkit.artifact.genai import check_genai_task
from onnxkit.errors import UsageError
from onnxkit.graph.files import load_model, save_model
from onnxkit.graph.kv_cache import is_past
from onnxkit.graph.shared_data import SharedData
from onnxkit.progress import Progress
from onnxkit.quantize.activations import Activations, DynamicActivations, RowActivations, StaticActivations
from onnxkit.quantize.blockwise import Blocks, blocks_of
from onnxkit.quantize.calibration import calibrate, without_constants
from onnxkit.quantize.check import check_runs
from onnxkit.quantize.data import MOST_COMPARED, DataSet, most_to_read, read_data, split
from onnxkit.quantize.judge import Pair, Yardstick, generates, judge, yardstick_of, yardstick_without_data
from onnxkit.quantize.operators import Target
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.report import Calibration, Measurement, QuantizedLayer, QuantizeReport
from onnxkit.quantize.rewrite import prepare, rewrite
from onnxkit.quantize.schemes import Scheme, WeightGrids, scheme_named, weight_grids
from onnxkit.quantize.select import Selection, refuse_unsuitable, select_all
from onnxkit.runtime import RuntimeOptions, open_session

FILE = "model.onnx"
SHARED = "model.onnx.data"
"""The weights of all graphs, where there are several: what two of them read stands once."""


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
    check_genai_task(model.task, wanted=options.genai_config)
    job = _Job(
        model=model, scheme=scheme, blocks=_blocks(scheme, options), options=options, progress=progress
    )
    _check_model(job)
    with publish(out, overwrite=options.overwrite, need_bytes=model.size_bytes // 2) as staging:
        outcome = _write(job, staging)
        copy_companions(model, staging)
        measurement = _try_out(job, staging, outcome)
        report = _report(job, Path(out), staging, outcome, measurement, time.perf_counter() - started)
        seal(
            staging,
            task=model.task,
            components=job.files,
            invocation=invocation or Invocation(stage="quantize", options=dataclasses.asdict(options)),
            parent=model,
            verified=None,
            measured=_figures(report),
            genai_config=options.genai_config,
        )
    return report


ROWS_FROM = 1 << 16
"""Weights of a graph's products on average, from which on each token gets a scale of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What one call works on."""

    model: ModelDir
    scheme: Scheme
    blocks: Blocks | None
    options: QuantizeOptions
    progress: Progress

    @property
    def files(self) -> dict[str, str]:
        """One graph is called model.onnx; several keep their names."""
        if len(self.model.components) == 1:
            return dict.fromkeys(self.model.components, FILE)
        return {name: Path(component.file).name for name, component in self.model.components.items()}

    def source(self, component: str) -> Path:
        """The file of an input graph."""
        return self.model.path / self.model.components[component].file

    @property
    def runtime(self) -> RuntimeOptions:
        """Every session of this call runs on the CPU with the threads asked for."""
        return RuntimeOptions(threads=self.options.threads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What was written, and the samples that are left to measure on."""

    selections: Mapping[str, Selection]
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
    if scheme.weight_only and not options.per_channel:
        raise UsageError(f"{scheme.name} has a scale for each block: --per-tensor does not apply")
    return scheme


def _blocks(scheme: Scheme, options: QuantizeOptions) -> Blocks | None:
    """How a weight-only scheme stores weights; UsageError for its options with another scheme."""
    given = {
        "--block-size": options.block_size,
        "--symmetric/--asymmetric": options.symmetric,
        "--accuracy-level": options.accuracy_level,
    }
    if scheme.weight_only:
        return blocks_of(scheme.bits, options.block_size, options.symmetric, options.accuracy_level)
    for flag, value in given.items():
        if value is not None:
            raise UsageError(f"{flag} applies to int8-weight and int4-weight, not to {scheme.name}")
    return None


def _check_model(job: _Job) -> None:
    if job.scheme.needs_calibration and generates(job.model):
        raise UsageError(
            f"{job.scheme.name} cannot calibrate a model that generates yet: "
            "use int8-dynamic, int8-weight or int4-weight"
        )


def _holds_out(options: QuantizeOptions) -> bool:
    """Whether a part of the calibration set is what the result is measured on."""
    return options.measure and options.eval is None


def _write(job: _Job, staging: Path) -> _Outcome:
    """Select, calibrate, rewrite and save."""
    graphs = {name: load_model(job.source(name)) for name in job.files}
    for name, graph in graphs.items():
        refuse_unsuitable(graph, str(job.source(name)))
        graphs[name] = prepare(graph, str(job.source(name)))
    selections = select_all(graphs, job.scheme, job.options)
    data, held_out = _samples(job)
    grids = weight_grids(machine.cpu())
    count = sum(len(selection.targets) for selection in selections.values())
    job.progress.note(f"{job.scheme.name}: {count} layers; weights: {_grid(job, grids)}")
    ranges, calibration = None, None
    if data is not None:
        (name,) = graphs
        scratch = staging / ".calibration"
        ranges, calibration = calibrate(
            job.source(name), selections[name], data, scratch, job.runtime, job.progress
        )
        selections[name] = without_constants(selections[name], ranges)
    layers = tuple(  # rewriting empties the nodes
        _layer(target, name) for name, selection in selections.items() for target in selection.targets
    )
    shared = SharedData(staging / SHARED) if len(graphs) > 1 else None
    for name, graph in graphs.items():
        activations = (
            _activations(job, graph, selections[name]) if ranges is None else StaticActivations(ranges)
        )
        rewrite(
            graph, selections[name].targets, activations,
            grids=grids, per_channel=job.options.per_channel, blocks=job.blocks,
        )  # fmt: skip
        save_model(graph, staging / job.files[name], shared=shared)
    return _Outcome(
        selections=selections, layers=layers, grids=grids, calibration=calibration, held_out=held_out
    )


def _activations(job: _Job, graph: ir.Model, selection: Selection) -> Activations:
    """A scale for each token in graphs with a cache, where products are large: see `RowActivations`.

    Its operators take about 5 µs a product; below `ROWS_FROM` weights that is more than int8 wins.
    """
    cached = any(is_past(value) for value in graph.graph.inputs)
    weights = sum(target.parameters for target in selection.targets)
    large = weights >= ROWS_FROM * len(selection.targets)
    newer = graph.graph.opset_imports.get("", 0) >= 18  # ReduceMax takes its axes as an input
    if not (cached and large and newer and job.blocks is None):
        return DynamicActivations()
    job.progress.note("activations: a scale for each token")
    return RowActivations()


def _grid(job: _Job, grids: WeightGrids) -> str:
    """How weights become integers, in plain words."""
    blocks = job.blocks
    if blocks is None:
        return grids.reason
    zero = "symmetric" if blocks.symmetric else "with zero points"
    return f"blocks of {blocks.size}, {zero}, accuracy level {blocks.accuracy_level}"


def _layer(target: Target, component: str) -> QuantizedLayer:
    return QuantizedLayer(
        name=target.name, op_type=target.node.op_type, parameters=target.parameters, component=component
    )


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
    yardstick = _yardstick(job, outcome)
    pairs: dict[str, Pair] = {}
    for name, file in job.files.items():
        written = staging / file
        pairs[name] = Pair(
            source=open_session(job.source(name), job.runtime), result=open_session(written, job.runtime)
        )
        layers = [layer.name for layer in outcome.layers if layer.component == name]
        check_runs(pairs[name].source, pairs[name].result, yardstick.cases[name][:2], written, layers)
    if not job.options.measure:
        job.progress.note("accuracy and speed were not measured (--no-measure)")
        return None
    measurement = judge(
        pairs,
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
        return yardstick_of(job.model, data, name, job.progress, file=options.eval, seed=options.seed)
    if held_out is not None:
        kept = ", kept out of calibration" if outcome.calibration is not None else ""
        return yardstick_of(job.model, held_out, f"{held_out.source}{kept}", job.progress, seed=options.seed)
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
    written = {path for file in job.files.values() for path in staging.glob(f"{file}*")}
    written |= {path for path in (staging / SHARED,) if path.exists()}
    after = sum(path.stat().st_size for path in written)
    kept = tuple(layer for selection in outcome.selections.values() for layer in selection.kept)
    cpu = machine.cpu()
    return QuantizeReport(
        out=str(out),
        scheme=job.scheme.name,
        weight_bits=job.scheme.bits,
        weight_grid=outcome.grids.products if job.blocks is None else "blocks",
        weight_grid_reason=_grid(job, outcome.grids),
        cpu=f"{cpu.model} ({', '.join(cpu.isa)})",
        per_channel=job.options.per_channel,
        blocks=job.blocks,
        calibration=outcome.calibration,
        quantized=outcome.layers,
        kept=kept,
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
