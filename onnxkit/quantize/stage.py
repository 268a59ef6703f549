"""The stage: one model directory in, a smaller and faster one out, and a report of what that cost."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from onnxkit.artifact import (
    Invocation,
    ModelDir,
    check_apart,
    check_target,
    copy_companions,
    publish,
    seal,
)
from onnxkit.artifact.genai import check_genai
from onnxkit.errors import GateFailed
from onnxkit.graph.files import save_model
from onnxkit.graph.shared_data import SharedData
from onnxkit.measure.cached_cases import generates
from onnxkit.measure.widened import open_for_check
from onnxkit.progress import Progress
from onnxkit.quantize.check import check_runs, check_weights
from onnxkit.quantize.formats import BlockFormat, IntegerFormat, Plan
from onnxkit.quantize.half import HalfName, announce, convert
from onnxkit.quantize.hardware import is_here
from onnxkit.quantize.job import Job, Samples, choose_yardstick, read_samples
from onnxkit.quantize.judge import Pair, judge
from onnxkit.quantize.learning import assume, learn
from onnxkit.quantize.options import QuantizeOptions, checked
from onnxkit.quantize.outcome import Outcome
from onnxkit.quantize.report import Calibration, KeptLayer, Measurement, QuantizeReport
from onnxkit.quantize.reporting import history, make_report
from onnxkit.quantize.schemes import Scheme
from onnxkit.quantize.search.analysis import Analysis, layer_rows, write_analysis
from onnxkit.quantize.search.decide import Decision, sensitivity_of
from onnxkit.quantize.search.quality import Gates
from onnxkit.quantize.search.searching import Searcher, check_limits, gates, layers_of
from onnxkit.quantize.search.units import units_of
from onnxkit.quantize.select import left_out
from onnxkit.quantize.workshop import SHARED, Workshop
from onnxkit.quantize.yardstick import Yardstick
from onnxkit.runtime import open_session


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
        UsageError: an unknown scheme or value, an option that the scheme does not take, a pattern that
            matches nothing, static without calibration, `out` exists.
        InputError: the model is quantized or of half precision already, or a weight or sample cannot be used.
        GateFailed: the quantized model gives NaN where the input model does not, or no variant keeps the
            limits; then with the report of the nearest.
        ResourceError: disk or memory.
    """
    started = time.perf_counter()
    options = options or QuantizeOptions()
    job = _opened(source, out, options, checked(options), progress)
    model = job.model
    need_bytes = model.size_bytes // 2
    with ExitStack() as until, publish(out, overwrite=options.overwrite, need_bytes=need_bytes) as staging:
        outcome = _write(job, Path(out), staging, until)
        copy_companions(model, staging)
        measurement = _try_out(job, staging, outcome)
        seconds = time.perf_counter() - started
        report = make_report(job, Path(out), staging, outcome, measurement, seconds)
        if report.size_ratio >= 1:
            job.progress.warn(f"the result is no smaller than its input: {report.size_ratio:.2f} of its size")
        if not outcome.decision.holds:
            raise GateFailed(_missed(outcome.decision, gates(job.options)), report)
        seal(
            staging,
            task=model.task,
            components=job.workshop.files,
            invocation=invocation or Invocation(stage="quantize", options=dataclasses.asdict(options)),
            parent=model,
            verified=None,
            measured=history(report),
            genai_config=options.genai_config,
        )
    return report


def analyze_model(
    source: str | Path,
    out: str | Path,
    options: QuantizeOptions | None = None,
    *,
    progress: Progress | None = None,
    invocation: Invocation | None = None,
) -> Analysis:
    """Quantize each layer alone, measure what that costs, and write a table, a plot and an exclusion file.

    Args:
        source: a model directory or an `.onnx` file of fp32.
        out: the new directory; it holds no model.
        options: as for `quantize_model`; limits do not apply.
        progress: is told what happens.
        invocation: how the command was called, for the history.

    Raises:
        UsageError, InputError, ResourceError: as `quantize_model`.
    """
    started = time.perf_counter()
    options = options or QuantizeOptions()
    job = _opened(source, out, options, checked(options, analyze=True), progress)
    model = job.model
    need_bytes = model.size_bytes // 2
    with ExitStack() as until, publish(out, overwrite=options.overwrite, need_bytes=need_bytes) as staging:
        scratch = staging / ".scratch"
        try:
            analysis = _analyze(job, Path(out), scratch, until, started)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        order = [target.name for name in job.workshop.files for target in job.workshop.targets(name)]
        write_analysis(analysis, order, staging)
        seal(  # the manifest tells --overwrite that the directory is ours
            staging,
            task=model.task,
            components={},
            invocation=invocation or Invocation(stage="analyze", options=dataclasses.asdict(options)),
            parent=model,
            verified=None,
            measured={"layers": len(analysis.layers), "whole": analysis.whole},
        )
    return analysis


def _opened(
    source: str | Path, out: str | Path, options: QuantizeOptions, scheme: Scheme, progress: Progress | None
) -> Job:
    """Refuse what cannot end well, then open the model."""
    check_apart(source, out)
    check_target(out, overwrite=options.overwrite)
    model = ModelDir.open(Path(source), task=options.task)
    progress = progress or Progress()
    check_genai(model.task, model.config, wanted=options.genai_config, progress=progress)
    return Job(workshop=Workshop(model, scheme, options), progress=progress)


def _analyze(job: Job, out: Path, scratch: Path, until: ExitStack, started: float) -> Analysis:
    samples = read_samples(job)
    yardstick = choose_yardstick(job, samples)
    _learn(job, samples, scratch)
    plans = job.workshop.plans(data=samples.calibration is not None)
    units = units_of(layers_of(job.workshop, plans))
    tools = _searcher(job, samples, yardstick, out, scratch, until).tools()
    found = sensitivity_of(units, plans, tools)
    whole = tools.full(plans)
    return Analysis(
        out=str(out),
        scheme=job.scheme.name,
        measured_on=yardstick.text or yardstick.name,
        samples=len(yardstick.data.samples) if yardstick.data is not None else yardstick.samples,
        noise="KL divergence, nats" if whole.kl is not None else "noise / signal",
        whole=whole,
        layers=layer_rows(found, plans),
        groups=found.groups,
        seconds=time.perf_counter() - started,
    )


def _write(job: Job, out: Path, staging: Path, until: ExitStack) -> Outcome:
    """Learn, plan, search, rewrite and save; what a search measured is kept until `until` is left."""
    samples = read_samples(job)
    yardstick = choose_yardstick(job, samples)
    check_limits(job.model, yardstick, job.options)
    scratch = staging / ".scratch"
    try:
        if job.scheme.family == "half":
            return _write_half(job, staging, yardstick, scratch)
        calibration = _learn(job, samples, scratch)
        plans = job.workshop.plans(data=samples.calibration is not None)
        decision = _searcher(job, samples, yardstick, out, scratch, until).decide(plans)
        _announce(job, decision.plans)
        job.workshop.write(decision.plans, staging)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Outcome(decision=decision, yardstick=yardstick, calibration=calibration)


def _learn(job: Job, samples: Samples, scratch: Path) -> Calibration | None:
    if samples.calibration is None:
        assume(job.workshop, job.progress)
        return None
    for component in job.workshop.files:  # or the samples would be blamed
        check_weights(job.workshop.graph(component).model, job.workshop.source(component))
    folder = scratch / "learning"
    return learn(
        job.workshop, samples.calibration, scratch=folder, runtime=job.runtime, progress=job.progress
    )


def _searcher(
    job: Job, samples: Samples, yardstick: Yardstick, out: Path, scratch: Path, until: ExitStack
) -> Searcher:
    return Searcher(
        workshop=job.workshop, yardstick=yardstick, calibration=samples.calibration, out=out, until=until,
        scratch=scratch / "search", runtime=job.runtime, progress=job.progress,
    )  # fmt: skip


def _write_half(job: Job, staging: Path, yardstick: Yardstick, scratch: Path) -> Outcome:
    """The whole graph in half precision, but for what does not bear it."""
    workshop = job.workshop
    dtype: HalfName = "fp16" if job.scheme.name == "fp16" else "bf16"
    announce(dtype, job.options.target, job.progress)
    scratch.mkdir(parents=True, exist_ok=True)
    shared = SharedData(staging / SHARED) if len(workshop.files) > 1 else None
    kept: list[KeptLayer] = []
    converted = 0
    for name, file in workshop.files.items():
        found = convert(
            lambda name=name: workshop.graph(name).model,  # type: ignore[misc]
            open_session(workshop.source(name), job.runtime), dtype, yardstick.cases[name], scratch,
            keep=left_out(workshop.graph(name).model, job.options), component=name,
            runtime=job.runtime, progress=job.progress,
        )  # fmt: skip
        save_model(found.model, staging / file, shared=shared)
        kept += found.kept
        converted += found.converted
    plans: dict[str, Plan] = {name: {} for name in workshop.files}
    return Outcome(
        decision=Decision(plans=plans), yardstick=yardstick, calibration=None,
        converted=converted, kept=tuple(kept),
    )  # fmt: skip


def _announce(job: Job, plans: Mapping[str, Plan]) -> None:
    """Say what becomes of the layers, and what was chosen for the hardware."""
    formats = Counter(format.describe() for plan in plans.values() for format in plan.values())
    job.progress.note(f"{job.scheme.name}: {', '.join(f'{n} x {text}' for text, n in formats.items())}")
    for experts in {selection.experts for selection in job.workshop.selections.values()} - {None}:
        job.progress.warn(str(experts))
    integers = [f for plan in plans.values() for f in plan.values() if isinstance(f, IntegerFormat)]
    if integers:
        job.progress.note(f"weights: {job.workshop.hardware.reason}")
    if job.options.target == "cuda" and any(f.style == "qoperator" for f in integers):
        job.progress.warn(
            "ONNX Runtime has no CUDA kernels for these 8-bit products: they run on the CPU; for a GPU take "
            "fp16, int4-weight or int8-static --format qdq"
        )
    slow = job.workshop.hardware.slow_8_bit_blocks and not generates(job.model)
    if slow and _mostly_8_bit_blocks(job, plans):
        job.progress.warn(
            "8-bit blocks are slower than float32 on this kind of CPU (x86), but for models that generate: "
            "the file gets smaller, the time longer; int8-dynamic makes both less"
        )


def _mostly_8_bit_blocks(job: Job, plans: Mapping[str, Plan]) -> bool:
    """Whether more than half of what products read in blocks has 8 bits: an int4 model's head alone does."""
    weights: Counter[int] = Counter()
    for component, plan in plans.items():
        for target in job.workshop.targets(component):
            format = plan.get(target.name)
            if target.kind != "embedding" and isinstance(format, BlockFormat):
                weights[format.bits] += target.parameters
    return 2 * weights[8] > weights.total()


def _try_out(job: Job, staging: Path, outcome: Outcome) -> Measurement | None:
    """Load and run the result; compare it with the input model unless told not to."""
    yardstick, plans = outcome.yardstick, outcome.decision.plans
    pairs: dict[str, Pair] = {}
    for name, file in job.workshop.files.items():
        written = staging / file
        pairs[name] = Pair(
            source=open_session(job.workshop.source(name), job.runtime),
            result=open_for_check(written, job.runtime, widen=job.scheme.name == "bf16"),
        )
        layers = [t.name for t in job.workshop.targets(name) if t.name in plans[name]]
        check_runs(pairs[name].source, pairs[name].result, yardstick.cases[name][:2], written, layers)
    if not job.options.measure or job.scheme.name == "bf16":
        why = "--no-measure" if not job.options.measure else "no CPU kernels compute in bfloat16"
        job.progress.note(f"accuracy and speed were not measured ({why})")
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
    _comment(measurement, job)
    return measurement


def _comment(measurement: Measurement, job: Job) -> None:
    """Warn of a result that is slower than its input, where it is to run."""
    speed = measurement.speed
    if not is_here(job.options.target):
        job.progress.note(f"speed is that of this machine, not of {job.workshop.hardware.name}")
    elif speed.ratio > 1.0:
        times = f"{speed.ratio:.2f} ± {speed.ratio_error:.2f} times as long ({speed.shape})"
        if speed.ratio - speed.ratio_error > 1.0:
            job.progress.warn(f"the quantized model is slower than its input: {times}")
        else:
            job.progress.note(f"the quantized model is no faster than its input: {times}")


def _missed(decision: Decision, limits: Gates) -> str:
    """What the nearest variant misses."""
    nearest = min(decision.attempts, key=lambda attempt: limits.excess(attempt.quality))
    return f"no variant keeps the limits; the nearest, {nearest.label}: {'; '.join(nearest.broken)}"
