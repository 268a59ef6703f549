"""Profiles model directories: time, memory, placement, operators; side by side and in turns."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxkit import machine
from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.measure.cached_cases import generates
from onnxkit.measure.cases import (
    Shape,
    batch_axis,
    check_shape,
    fixed_shape,
    specs_of,
    takes_sequence,
)
from onnxkit.measure.children import Child
from onnxkit.measure.generation_profile import WORKER as GENERATING
from onnxkit.measure.generation_profile import (
    Workload,
    bandwidth_share,
    generation_facts,
    measured_bandwidth,
    workloads,
)
from onnxkit.measure.geometry import Geometry, geometry
from onnxkit.measure.latency import (
    DEFAULT_SECONDS,
    FEWEST_RUNS,
    Caution,
    LoadMeter,
    cautions,
    check_duration,
    ratio,
    summarize,
)
from onnxkit.measure.operators import OperatorTime
from onnxkit.measure.profile_report import (
    GenerationFacts,
    Measurement,
    ModelProfile,
    ProfileOptions,
    ProfileReport,
)
from onnxkit.measure.settings import SessionFacts, describe, machine_facts
from onnxkit.progress import Progress
from onnxkit.report import to_plain
from onnxkit.runtime import TensorSpec, provider_name
from onnxkit.runtime.providers import CPU
from onnxkit.safety import read_npz

_DEFAULT_SEQUENCE = 128
_ROUNDS = 5
# A loaded model takes about its file's size again for packed weights, and as much for activations.
_MEMORY_PER_BYTE = 3
ENCODING = "onnxkit.measure.worker"
_EXCLUDED = {
    False: "ONNX Runtime alone: the latency holds no tokenization, decoding, loading or first run",
    True: "ONNX Runtime and the choice of the best token: no tokenization, loading or first run",
}


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One model on one provider with one number of threads, before it is measured.

    Attributes:
        path: what was asked for: a directory or a bare file.
    """

    path: str
    model: ModelDir
    known: Geometry
    shapes: tuple[Shape, ...] | tuple[Workload, ...]
    generating: bool
    sequence_applies: bool
    ep: str
    ep_options: Mapping[str, str]
    threads: int | None

    @property
    def label(self) -> str:
        threads = "" if self.threads is None else f", threads {self.threads}"
        return f"{self.path} ({self.ep}{threads})"


@dataclass(kw_only=True)
class _Found:
    """What a child has told so far, shape by shape; `opened` is its answer to `open`."""

    opened: dict[str, Any]
    session: SessionFacts
    start_memory_bytes: int
    first_run_ms: list[float] = field(default_factory=list)
    tokens: list[int | None] = field(default_factory=list)
    rounds: list[list[list[float]]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    other_cores: list[float] = field(default_factory=list)
    tables: list[tuple[OperatorTime, ...]] = field(default_factory=list)


def profile_model(
    paths: Sequence[str | Path], options: ProfileOptions | None = None, *, progress: Progress | None = None
) -> ProfileReport:
    """Measure ONNX Runtime alone on random inputs: no tokenization, and no work on what comes out.

    Each model and setting lives in a process of its own; they take turns, shape by shape. Models that
    generate are measured by `generation_profile.workloads` instead of shapes.

    Raises:
        UsageError: an option that does not apply (a sequence for an image model, a trace of several), models
            of both kinds.
        InputError: a model that cannot be read, or that fixes a dimension to another size.
        EnvironmentProblem: a provider that cannot be used here.
        ResourceError: out of memory.
    """
    options, progress = options or ProfileOptions(), progress or Progress()
    check_duration(options.runs, options.seconds)
    settings = _settings([(str(path), ModelDir.open(Path(path))) for path in paths], options)
    if options.trace is not None and len(settings) > 1:
        raise UsageError("--trace keeps the trace of one model, provider and thread count: ask for one")
    together = len(settings) == 1 or _fit_together(settings)
    groups = [settings] if together else [[setting] for setting in settings]
    if not together:
        progress.warn("the models do not fit into memory together: measured one after another")
    found: list[_Found] = []
    for group in groups:
        found += _measure_group(group, options, progress)
    speeds = _bandwidths(settings, found, progress)
    profiles = [_profile(each, result, (settings[0], found[0]), speeds, together, options)
                for each, result in zip(settings, found, strict=True)]  # fmt: skip
    for profile in profiles:
        for caution in {each.kind: each for row in profile.measurements for each in row.cautions}.values():
            progress.warn(f"{profile.path}: {caution.text}")
    return ProfileReport(
        models=tuple(profiles),
        machine=machine_facts(),
        excluded=_EXCLUDED[settings[0].generating],
        notes=_notes(settings, options),
    )


def _settings(models: Sequence[tuple[str, ModelDir]], options: ProfileOptions) -> list[_Setting]:
    if not models:
        raise UsageError("no model directory given")
    others = [ep for ep in options.eps if provider_name(ep) != CPU]
    found: list[_Setting] = []
    for path, model in models:
        known, generating = geometry(model.config), generates(model)
        if found and generating != found[0].generating:
            raise UsageError(f"{found[0].path} and {path}: only one of them generates: profile them apart")
        if generating and options.inputs is not None:
            raise UsageError(f"{path}: --inputs does not apply: the model generates")
        specs = () if generating else specs_of(model)
        shapes = workloads(model, options) if generating else _shapes(model, specs, known, options)
        for ep, threads in itertools.product(options.eps, options.threads or (None,)):
            found.append(
                _Setting(
                    path=path,
                    model=model,
                    known=known,
                    shapes=shapes,
                    generating=generating,
                    sequence_applies=generating or takes_sequence(specs),
                    ep=ep,
                    # The CPU has none; with the CPU alone they are passed on, to be refused.
                    ep_options=options.ep_options if ep in others or not others else {},
                    threads=threads,
                )
            )
    return found


def _shapes(
    model: ModelDir, specs: Sequence[TensorSpec], known: Geometry, options: ProfileOptions
) -> tuple[Shape, ...]:
    """Return the shapes to measure, the smallest first."""
    for name, asked in (("--prefill", options.prefill), ("--depth", options.depth)):
        if asked is not None:
            raise UsageError(
                f"{model.path}: {name} does not apply: the model does not generate ({model.task})"
            )
    applies = takes_sequence(specs)
    if options.sequence is not None and not applies:
        raise UsageError(f"{model.path}: --sequence does not apply: the model reads no tokens ({model.task})")
    if options.padding != "none" and not applies:
        raise UsageError(f"{model.path}: --padding does not apply: the model reads no tokens ({model.task})")
    if options.inputs is not None:
        return (_given_shape(specs, options.inputs),)
    fixed = fixed_shape(specs, sequence=min(_DEFAULT_SEQUENCE, known.positions or _DEFAULT_SEQUENCE))
    shapes = [
        Shape(batch=batch, sequence=sequence, padding=options.padding)
        for batch in options.batch or (fixed.batch,)
        for sequence in options.sequence or (fixed.sequence,)
    ]
    for shape in shapes:
        if shape.batch < 1 or shape.sequence < 1:
            raise UsageError(f"batch {shape.batch}, sequence {shape.sequence}: at least 1")
        check_shape(specs, known, shape)
    return tuple(sorted(shapes, key=lambda shape: (shape.batch * shape.sequence, shape.batch)))


def _given_shape(specs: Sequence[TensorSpec], inputs: Path) -> Shape:
    """The batch, and of a model that reads tokens the sequence, that an .npz file holds."""
    arrays = read_npz(inputs)
    batch, sequence = 1, 1
    for spec in specs:
        array = arrays.get(spec.name)
        if array is not None and array.ndim > 1:
            rows = array.shape[batch_axis(spec, specs)]
            if rows == 0:
                raise InputError(f"{inputs}: {spec.name} holds no row: there is nothing to measure")
            batch = max(batch, rows)
            sequence = array.shape[1] if takes_sequence([spec]) else sequence
    return Shape(batch=batch, sequence=sequence)


def _fit_together(settings: Sequence[_Setting]) -> bool:
    need = sum(setting.model.size_bytes for setting in settings) * _MEMORY_PER_BYTE
    return need <= machine.memory().available_bytes


def _measure_group(settings: Sequence[_Setting], options: ProfileOptions, progress: Progress) -> list[_Found]:
    """Measure settings in turns: shape by shape, and within a shape round by round."""
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child(setting.label, module=GENERATING if setting.generating else ENCODING))
            for setting in settings
        ]
        found = [_open(child, setting, options) for child, setting in zip(children, settings, strict=True)]
        for setting, result in zip(settings, found, strict=True):
            progress.note(f"{setting.path}: {describe(result.session)}")
        turns = max(len(setting.shapes) for setting in settings)
        for index in progress.track(range(turns), total=turns, text="measure"):
            here = [i for i, setting in enumerate(settings) if index < len(setting.shapes)]
            _measure_shape(index, [(children[i], settings[i], found[i]) for i in here], options)
        if options.operators or options.trace is not None:
            for child, setting, result in zip(children, settings, found, strict=True):
                progress.note(f"{setting.path}: operators")
                result.tables = _operators(child, setting, options)
    return found


def _open(child: Child, setting: _Setting, options: ProfileOptions) -> _Found:
    if options.inputs is not None:
        child.ask("read", inputs=str(options.inputs))
    reply = child.ask(
        "open",
        model=str(setting.model.path if setting.generating else setting.model.model_file),
        options={
            "ep": setting.ep,
            "ep_options": dict(setting.ep_options),
            "threads": setting.threads,
            "graph_optimization": options.graph_optimization,
        },
        geometry=to_plain(setting.known),
    )
    session = reply["session"]
    facts = SessionFacts(**{**session, "fallback_nodes": tuple(session["fallback_nodes"])})
    return _Found(opened=reply, session=facts, start_memory_bytes=reply["start_memory_bytes"])


def _measure_shape(
    index: int, group: Sequence[tuple[Child, _Setting, _Found]], options: ProfileOptions
) -> None:
    for child, setting, found in group:
        shape = asdict(setting.shapes[index])
        reply = child.ask("shape", shape=shape, seed=options.seed, warmup=options.warmup)
        found.first_run_ms.append(reply["first_run_ms"])
        found.tokens.append(reply["tokens"])
        found.rounds.append([])
    before = [child.ask("usage")["cpu_seconds"] for child, _, _ in group]
    meter = LoadMeter()
    for budget in _budgets(options, len(group)):
        for child, _, found in group:
            found.rounds[-1].append(child.ask("burst", **budget)["times"])
    usages = [child.ask("usage") for child, _, _ in group]
    own = sum(usage["cpu_seconds"] for usage in usages) - sum(before)
    others = meter.other_cores(own)
    for (_, _, found), usage in zip(group, usages, strict=True):
        found.peaks.append(usage["peak_memory_bytes"])
        found.other_cores.append(others)


def _budgets(options: ProfileOptions, children: int) -> Iterator[dict[str, Any]]:
    """Divide the time or runs of one shape into rounds; a child alone needs no turns."""
    rounds = _ROUNDS if children > 1 else 1
    if options.runs is None:
        seconds = (options.seconds if options.seconds is not None else DEFAULT_SECONDS) / rounds
        budget = {"runs": None, "seconds": seconds, "fewest": math.ceil(FEWEST_RUNS / rounds)}
        yield from (budget for _ in range(rounds))
        return
    for turn in range(min(rounds, options.runs)):
        share = options.runs // rounds + (turn < options.runs % rounds)
        yield {"runs": share, "seconds": None, "fewest": 0}


def _operators(child: Child, setting: _Setting, options: ProfileOptions) -> list[tuple[OperatorTime, ...]]:
    trace = str(options.trace.resolve()) if options.trace is not None else None
    shapes = [asdict(shape) for shape in setting.shapes]
    tables = child.ask("operators", shapes=shapes, seed=options.seed, trace=trace)["tables"]
    return [tuple(OperatorTime(**row) for row in table) for table in tables]


def _bandwidths(
    settings: Sequence[_Setting], found: Sequence[_Found], progress: Progress
) -> dict[int, float]:
    """Measure how fast this machine reads memory with each number of threads, where that is a limit."""
    counts = {result.session.threads for each, result in zip(settings, found, strict=True) if each.generating}
    if counts:
        progress.note("reading speed of the memory")
    return {count: measured_bandwidth(count) for count in sorted(counts)}


def _profile(
    setting: _Setting,
    found: _Found,
    first: tuple[_Setting, _Found],
    speeds: Mapping[int, float],
    together: bool,
    options: ProfileOptions,
) -> ModelProfile:
    facts = None
    if setting.generating:
        facts = generation_facts(setting.model, found.opened, speeds[found.session.threads])
    return ModelProfile(
        path=setting.path,
        task=setting.model.task,
        size_bytes=setting.model.size_bytes,
        ep=setting.ep,
        session=found.session,
        start_memory_bytes=found.start_memory_bytes,
        measurements=tuple(
            _measurement(index, setting, found, first, together, facts)
            for index in range(len(setting.shapes))
        ),
        trace=str(options.trace) if options.trace is not None else None,
        generation=facts,
    )


def _measurement(
    index: int,
    setting: _Setting,
    found: _Found,
    first: tuple[_Setting, _Found],
    together: bool,
    facts: GenerationFacts | None,
) -> Measurement:
    shape, rounds = setting.shapes[index], found.rounds[index]
    latency = summarize(list(itertools.chain.from_iterable(rounds)))
    base, baseline = first
    against = None
    if found is not baseline and shape in base.shapes:
        theirs = baseline.rounds[base.shapes.index(shape)]
        against = ratio(setting.label, base.label, rounds, theirs)
    doubts = cautions(latency, other_cores=found.other_cores[index], threads=found.session.threads)
    if against is not None and not together:
        text = "measured after the first model, not in turns with it: the ratio holds the machine's drift"
        doubts += (Caution(kind="not_interleaved", figure=against.of_means, text=text),)
    per_second = 1e3 / latency.mean_ms
    tokens = found.tokens[index]
    workload = shape if isinstance(shape, Workload) else None
    length = workload.tokens if workload is not None else shape.sequence  # type: ignore[union-attr]
    share = bandwidth_share(facts, workload, latency.mean_ms) if facts and workload else None
    return Measurement(
        phase=workload.phase if workload is not None else None,
        batch=shape.batch,
        sequence=length if setting.sequence_applies and found.tokens[index] is not None else None,
        tokens=tokens,
        latency=latency,
        samples_per_s=shape.batch * per_second,
        tokens_per_s=None if tokens is None else tokens * per_second,
        first_run_ms=found.first_run_ms[index],
        peak_memory_bytes=found.peaks[index],
        bandwidth_share=share,
        ratio=against,
        operators=found.tables[index] if found.tables else (),
        cautions=doubts,
    )


def _notes(settings: Sequence[_Setting], options: ProfileOptions) -> tuple[str, ...]:
    notes = [
        f"{setting.path}: reads no tokens, so no sequence length applies"
        for setting in settings
        if not setting.sequence_applies
    ]
    if any(provider_name(setting.ep) != CPU for setting in settings):
        notes.append("copies to and from a device count as latency; device memory is not measured")
    if options.trace is not None:
        notes.append(f"trace: {options.trace} (open it at ui.perfetto.dev)")
    return tuple(dict.fromkeys(notes))
