"""The stage: one model directory in, the same model in a provider's own operators out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxkit.artifact import (
    Invocation,
    ModelDir,
    Verification,
    check_apart,
    check_target,
    copy_companions,
    publish,
    seal,
)
from onnxkit.artifact.companions import REFERENCE_NAME
from onnxkit.artifact.genai import check_genai
from onnxkit.errors import GateFailed, UsageError
from onnxkit.graph.files import load_model
from onnxkit.graph.integers import ROUNDING_OPS
from onnxkit.graph.packing import PACKED_LINEARS
from onnxkit.graph.shared_data import SharedData
from onnxkit.graph.statistics import count_fused, count_nodes
from onnxkit.measure.cases import random_cases
from onnxkit.optimize import gate
from onnxkit.optimize.attempts import Attempt, Graph, differs, settle
from onnxkit.optimize.dialects import Dialect, check_fusions, dialect_of
from onnxkit.optimize.levels import Level, level_of
from onnxkit.optimize.options import OptimizeOptions
from onnxkit.optimize.report import ComponentChange, OptimizeReport, SpeedRatio
from onnxkit.optimize.rewrite import Rewritten
from onnxkit.progress import Progress
from onnxkit.runtime import provider_name
from onnxkit.safety import read_npz

SHARED = "model.onnx.data"
"""The weights of all graphs, where there are several: what two of them read stands once."""

_CPU = "CPUExecutionProvider"
_HALF = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What one call works on."""

    model: ModelDir
    level: Level
    dialect: Dialect
    options: OptimizeOptions
    progress: Progress


def optimize_model(
    source: str | Path,
    out: str | Path,
    options: OptimizeOptions | None = None,
    *,
    progress: Progress | None = None,
    invocation: Invocation | None = None,
) -> OptimizeReport:
    """Optimize a model directory and publish the result in `out`.

    Args:
        source: a model directory (ours or another tool's) or an `.onnx` file.
        out: the new directory.
        options: what to do; the defaults of `OptimizeOptions`.
        progress: is told what happens.
        invocation: how the command was called, for the history.

    Raises:
        UsageError: an unknown level, provider or fusion; `out` exists.
        InputError: the model cannot be read, or ONNX Runtime refuses it.
        GateFailed: the result differs from its input by more than the tolerance, also without any fusion.
        ResourceError: disk or memory.
    """
    started = time.perf_counter()
    options, progress = options or OptimizeOptions(), progress or Progress()
    level, dialect = level_of(options.level), dialect_of(options.ep)
    check_fusions(options.disable_fusions, dialect)
    check_apart(source, out)
    check_target(out, overwrite=options.overwrite)
    model = ModelDir.open(Path(source), task=options.task)
    check_genai(model.task, model.config, wanted=options.genai_config, progress=progress)
    job = _Job(model=model, level=level, dialect=dialect, options=options, progress=progress)
    if level.half and provider_name(options.ep) == _CPU:
        progress.warn("float16 on a CPU is computed in float32 between casts: half the file, but no faster")
    progress.note(f"-O{level.number}: {level.summary}, for {provider_name(options.ep)}")
    with publish(out, overwrite=options.overwrite, need_bytes=model.size_bytes) as staging:
        copy_companions(model, staging)
        files = _file_names(model)
        shared = SharedData(staging / SHARED) if len(files) > 1 else None
        changes = [_component(job, name, staging / file, shared) for name, file in files.items()]
        report = _report(job, Path(source), Path(out), staging, changes, started)
        _require_passed(report)
        if level.half and report.size_after_bytes >= report.size_before_bytes:
            size = report.size_after_bytes / report.size_before_bytes
            progress.warn(f"the result is no smaller than its input: {size:.2f} of its size")
        invocation = invocation or Invocation(stage="optimize", options=dataclasses.asdict(options))
        seal(
            staging,
            task=model.task,
            components=files,
            invocation=invocation,
            parent=model,
            verified=None if _only_reported(model) else _verification(report),
            measured=_measured(report),
            genai_config=options.genai_config,
        )
    return report


def _require_passed(report: OptimizeReport) -> None:
    for change in report.components:
        if not change.check.passed:
            raise GateFailed(
                f"{report.source}: the optimized graph of {change.name!r} {differs(change.check)}; "
                "nothing was published",
                report,
            )


def _file_names(model: ModelDir) -> dict[str, str]:
    """One graph is called model.onnx; several keep their names."""
    if len(model.components) == 1:
        return dict.fromkeys(model.components, "model.onnx")
    return {name: Path(component.file).name for name, component in model.components.items()}


def _component(job: _Job, name: str, target: Path, shared: SharedData | None) -> ComponentChange:
    """Rewrite and check one graph."""
    source = job.model.path / job.model.components[name].file
    before = load_model(source)
    cases = _cases(job, name)
    tolerance = _tolerance(before, job.level)
    upcast = tolerance == "bf16"
    if upcast:
        _accept_bfloat16(job, source)
    graph = Graph(
        source=source,
        target=target,
        level=job.level,
        dialect=job.dialect,
        ep=job.options.ep,
        threads=job.options.threads,
        tolerance=tolerance,
        expected=gate.expect(
            source, cases, threads=job.options.threads, upcast=upcast, progress=job.progress
        ),
        upcast=upcast,
        shared=shared,
        mark=shared.mark() if shared is not None else 0,
        progress=job.progress,
    )
    attempt = settle(graph, _disabled(job)) if job.level.clean else _copy(graph, job.model)
    return _change(name, before, load_model(target), attempt, _speed(job, graph, attempt))


def _cases(job: _Job, name: str) -> list[tuple[str, gate.Feeds]]:
    """What the result is checked on: the caller's arrays, else made-up ones."""
    if job.options.inputs is None:
        return [*random_cases(job.model, seed=job.options.seed, component=name)]
    if len(job.model.components) > 1:
        graphs = ", ".join(job.model.components)
        raise UsageError(f"--inputs does not apply: {job.model.path} holds several graphs ({graphs})")
    return [(job.options.inputs.name, read_npz(job.options.inputs))]


def _disabled(job: _Job) -> tuple[str, ...]:
    """What the user leaves out, and packing where a second decoder reads the same weights as they are."""
    twice = {"decoder", "decoder_with_past"} <= set(job.model.components)
    return (*job.options.disable_fusions, *((PACKED_LINEARS.name,) if twice else ()))


def _accept_bfloat16(job: _Job, source: Path) -> None:
    if job.level.half:
        raise UsageError(f"{source} holds bfloat16: -O4 makes float16 of float32 models; ask for -O3")
    job.progress.warn("bfloat16 is checked as float32, which it is cast to; the speed is not measured")


def _only_reported(model: ModelDir) -> bool:
    """Whether the input's differences from its reference data are reported, not judged: its products round.
    The reference data travel on, and so must that.
    """
    known = model.manifest is not None and model.manifest.verified is None
    return known and (model.path / REFERENCE_NAME).is_file()


def _tolerance(model: ir.Model, level: Level) -> str:
    """A graph that computes in half precision already is judged as such; scales that only stand in it say
    nothing. One whose products round their activations to int8 in blocks is no finer; in one that rounds
    whole tensors, a sum in another order moves values by a step of their grid.
    """
    values = model.graph.initializers.values()
    dtypes = {each.dtype for each in values if any(use.node.op_type != "Cast" for use in each.uses())}
    found = [name for dtype, name in _HALF.items() if dtype in dtypes]
    if any(node.op_type in ROUNDING_OPS for node in model.graph):
        return "int8"
    if not found and any(_rounds_blocks(node) for node in model.graph):
        return "fp16"
    return found[-1] if found else level.tolerance


def _rounds_blocks(node: ir.Node) -> bool:
    level = node.attributes.get("accuracy_level")
    return node.op_type in ("MatMulNBits", "QMoE") and level is not None and level.as_int() == 4


def _copy(graph: Graph, model: ModelDir) -> Attempt:
    """Copy the graph and its weights as they are, and check the copy."""
    graph.target.parent.mkdir(exist_ok=True)
    folder = graph.source.parent
    for name in model.weight_files:
        file = model.path / name
        if file != graph.source and file.suffix != ".onnx" and file.is_relative_to(folder):
            copied = graph.target.parent / file.relative_to(folder)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
    shutil.copyfile(graph.source, graph.target)
    session = gate.open_judged(
        graph.target, graph.ep, threads=graph.threads, upcast=graph.upcast, progress=graph.progress
    )
    check = gate.check(graph.expected, session, graph.tolerance)
    return Attempt(rewritten=Rewritten(), check=check, session=session)


def _speed(job: _Job, graph: Graph, attempt: Attempt) -> SpeedRatio | None:
    """Time the result; say so when it is slower than its input."""
    elsewhere = attempt.check.provider != provider_name(graph.ep)
    if (
        not job.options.measure
        or attempt.session is None
        or not attempt.check.passed
        or elsewhere
        or graph.upcast
    ):
        return None
    if job.model.size_bytes > gate.MOST_TIMED_BYTES:
        job.progress.note("the speed is not measured: input and result together may not fit into memory")
        return None
    speed = gate.measure_speed(graph.source, attempt.session, graph.expected, graph.threads)
    if speed.slower:
        job.progress.warn(
            f"the result takes {speed.ratio:.2f} times as long as its input ({speed.case}, "
            f"{speed.threads} threads, {speed.error:.2f} standard error); --disable-fusion leaves one out"
        )
    return speed


def _change(
    name: str, before: ir.Model, after: ir.Model, attempt: Attempt, speed: SpeedRatio | None
) -> ComponentChange:
    return ComponentChange(
        name=name,
        nodes_before=dict(count_nodes(before)),
        nodes_after=dict(count_nodes(after)),
        fused=dict(count_fused(after).most_common()),
        lowered=dict(attempt.rewritten.lowered.most_common()),
        kept=attempt.rewritten.kept,
        dropped=tuple(attempt.dropped),
        kept_float32=attempt.kept_float32,
        recognized=attempt.rewritten.recognized,
        shared_cache=attempt.rewritten.shared_cache,
        check=attempt.check,
        speed=speed,
    )


def _report(
    job: _Job,
    source: Path,
    out: Path,
    staging: Path,
    changes: list[ComponentChange],
    started: float,
) -> OptimizeReport:
    written = [file for file in staging.rglob("*") if file.suffix == ".onnx" or file.name.endswith(".data")]
    return OptimizeReport(
        source=str(source),
        out=str(out),
        task=job.model.task,
        level=job.level.number,
        provider=provider_name(job.options.ep),
        components=tuple(changes),
        size_before_bytes=job.model.size_bytes,
        size_after_bytes=sum(file.stat().st_size for file in written),
        seconds=time.perf_counter() - started,
    )


def _verification(report: OptimizeReport) -> Verification:
    """The worst check of all graphs."""
    worst = max((component.check for component in report.components), key=lambda check: check.worst)
    return Verification(
        passed=all(component.check.passed for component in report.components),
        against="its input",
        tolerance=worst.tolerance,
        worst=worst.worst,
        output=worst.output,
        cases=worst.cases,
    )


def _measured(report: OptimizeReport) -> Mapping[str, Any]:
    return {
        "nodes": {c.name: sum(c.nodes_after.values()) for c in report.components},
        "fused": {c.name: c.fused for c in report.components},
        "speed": {c.name: c.speed for c in report.components},
        "size_bytes": report.size_after_bytes,
        "seconds": report.seconds,
    }
