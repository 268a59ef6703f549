"""`onnxkit profile`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console
from onnxkit.errors import UsageError

if TYPE_CHECKING:
    from onnxkit.measure.profile_report import Measurement, ModelProfile, ProfileReport

EXAMPLES = """
onnxkit profile build/bert
onnxkit profile build/bert build/bert-int8 --batch 1,8 --sequence 16,128 --seconds 3
onnxkit profile build/bert --ep cpu,cuda --threads 1,2
onnxkit profile build/bert --trace trace.json
onnxkit profile detector.onnx build/detector --inputs photo.npz
onnxkit profile build/llama build/llama-int4 --prefill 128,512 --depth 32,512,1024 --threads 1
onnxkit profile build/bert --json | jq '.result.models[0].measurements[0].latency.p50_ms'
"""
SHOWN = 8

Models = Annotated[
    list[Path],
    typer.Argument(metavar="DIR...", help="Model directories; ratios are to the first."),
]
Batch = Annotated[str | None, options.option("--batch", metavar="N,…", help="Batch sizes. [default: 1]")]
Sequence = Annotated[
    str | None,
    options.option("--sequence", metavar="N,…", help="Tokens a sample. [default: 128]"),
]
Inputs = Annotated[
    Path | None,
    options.option(
        "--inputs", metavar="FILE.npz", help="Arrays to measure on, one for each input, instead of shapes."
    ),
]
Prefill = Annotated[
    str | None,
    options.option(
        "--prefill",
        metavar="N,…",
        help="Tokens of the prompts, for models that generate. [default: 128,512 as far as they fit]",
    ),
]
Depth = Annotated[
    str | None,
    options.option(
        "--depth",
        metavar="N,…",
        help="Tokens in the cache before a decoding step. [default: 32,512 as far as they fit]",
    ),
]
Padding = Annotated[
    str,
    options.option(
        "--padding",
        choices=("none", "left", "right"),
        help="Side on which the shorter samples of a batch are padded.",
    ),
]
Runs = Annotated[int | None, options.option("--runs", metavar="N", help="Runs a figure rests on.", min=1)]
Seconds = Annotated[
    float | None,
    options.option("--seconds", metavar="S", help="Seconds a figure rests on. [default: 1]", min=0.001),
]
Warmup = Annotated[
    int, options.option("--warmup", metavar="N", help="Runs before, which do not count.", min=0)
]
Operators = Annotated[
    bool, options.option("--operators/--no-operators", help="Measure the time of each operator, too.")
]
Trace = Annotated[
    Path | None,
    options.option(
        "--trace",
        metavar="FILE.json",
        panel=options.OUTPUT,
        help="Keep ONNX Runtime's trace; open it at ui.perfetto.dev.",
    ),
]
Threads = Annotated[
    str | None,
    options.option(
        "--threads",
        metavar="N,…",
        panel=options.RUNTIME,
        help="Thread counts; without it the cores that the process may really use.",
    ),
]


def profile(
    ctx: typer.Context,
    models: Models,
    batch: Batch = None,
    sequence: Sequence = None,
    inputs: Inputs = None,
    prefill: Prefill = None,
    depth: Depth = None,
    padding: Padding = "none",
    runs: Runs = None,
    seconds: Seconds = None,
    warmup: Warmup = 3,
    operators: Operators = True,
    seed: options.Seed = 0,
    trace: Trace = None,
    overwrite: options.Overwrite = False,
    ep: options.EpList = "cpu",
    ep_option: options.EpOption = None,
    threads: Threads = None,
    graph_optimization: options.GraphOptimization = "all",
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure latency, throughput, memory, operators; several models in turns, side by side."""
    options.reject(runs is not None and seconds is not None, "--seconds", "--runs says how long to measure")
    shaped = batch is not None or sequence is not None or padding != "none"
    options.reject(
        inputs is not None and shaped, "--inputs", "it has a shape: leave out --batch, --sequence, --padding"
    )
    _check_trace(trace, overwrite=overwrite, operators=operators)
    eps = options.split_list(ep)
    if not eps:
        raise UsageError("--ep: the list is empty (a list is cpu,cuda)")
    from onnxkit.measure import ProfileOptions, profile_model

    chosen: dict[str, Any] = {"padding": padding, "graph_optimization": graph_optimization}
    report = profile_model(
        models,
        ProfileOptions(
            eps=eps,
            ep_options=options.split_pairs(ep_option, "--ep-option"),
            batch=options.split_integers(batch, "--batch") or None,
            sequence=options.split_integers(sequence, "--sequence") or None,
            prefill=options.split_integers(prefill, "--prefill") or None,
            depth=options.split_integers(depth, "--depth") or None,
            threads=options.split_integers(threads, "--threads") or None,
            runs=runs,
            seconds=seconds,
            warmup=warmup,
            operators=operators,
            trace=trace,
            inputs=inputs,
            seed=seed,
            **chosen,
        ),
        progress=ctx.obj,
    )
    ctx.obj.result("profile", report, show, data=True)


def _check_trace(trace: Path | None, *, overwrite: bool, operators: bool) -> None:
    """Refuse a trace that cannot be written or would be empty, and what needs one where there is none."""
    options.reject(overwrite and trace is None, "--overwrite", "only --trace writes a file")
    options.reject(trace is not None and not operators, "--no-operators", "--trace records each operator")
    if trace is not None:
        from onnxkit.artifact import check_file

        check_file(trace, overwrite=overwrite)


def show(console: Console, report: ProfileReport) -> None:
    """Print where it was measured, the models, the times side by side, and the operators."""
    machine = report.machine
    console.facts(
        [
            ("cpu", f"{machine.cpu} ({' '.join(machine.isa)})"),
            ("onnxruntime", machine.onnxruntime),
            ("measured", report.excluded),
        ]
    )
    names = _names(report.models)
    console.heading("Models")
    console.table(
        [
            Column("model"),
            *(Column(title, number=True) for title in ("MB", "threads", "load ms")),
            Column("nodes on"),
        ],
        [_model_row(name, model) for name, model in zip(names, report.models, strict=True)],
    )
    if report.models[0].generation is not None:
        _show_generation(console, names, report.models)
    else:
        console.heading("Latency of a run, in ms")
        _show_times(console, names, report.models)
        console.heading("Throughput and memory")
        _show_rates(console, names, report.models)
    for name, model in zip(names, report.models, strict=True):
        shown = next((row for row in reversed(model.measurements) if row.operators), model.measurements[-1])
        _show_operators(console, name, shown)
        for node in model.session.fallback_nodes[:SHOWN]:
            console.line(f"not on {model.session.provider}: {node}")
    for note in report.notes:
        console.line(note)


def _names(models: tuple[ModelProfile, ...]) -> list[str]:
    """Name each setting by its folder, with what else tells it apart."""
    folders = Counter(Path(path).name for path in {model.path for model in models})
    eps, threads = {model.ep for model in models}, {model.session.threads for model in models}
    names = []
    for model in models:
        name = Path(model.path).name
        parts = [model.path if folders[name] > 1 or not name else name]
        parts += [model.ep] if len(eps) > 1 else []
        parts += [figures.plural(model.session.threads, "thread")] if len(threads) > 1 else []
        names.append(" ".join(parts))
    return names


def _model_row(name: str, model: ModelProfile) -> tuple[str, ...]:
    session = model.session
    return (
        name,
        figures.megabytes(model.size_bytes),
        f"{session.threads} ({session.threads_source})",
        figures.digits(session.load_ms),
        figures.placement(session.nodes).replace("ExecutionProvider", ""),
    )


def _shape(row: Measurement) -> str:
    return str(row.batch) if row.sequence is None else f"{row.batch} x {row.sequence}"


def _show_times(console: Console, names: list[str], models: tuple[ModelProfile, ...]) -> None:
    titles = ("p50", "p90", "p99", "mean", "runs", "first", "to the first model")
    compared = len(models) > 1
    rows = []
    for index in range(max(len(model.measurements) for model in models)):
        for name, model in zip(names, models, strict=True):
            if index < len(model.measurements):
                row = _time_row(name, model.measurements[index])
                rows.append(row if compared else row[:-1])
    console.table(
        [
            Column("model"),
            Column("shape", number=True),
            *(Column(title, number=True) for title in (titles if compared else titles[:-1])),
        ],
        rows,
    )


def _time_row(name: str, row: Measurement) -> tuple[str, ...]:
    latency = row.latency
    doubt = "*" if row.cautions else ""
    return (
        name,
        _shape(row),
        *(figures.digits(value) for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)),
        f"{figures.digits(latency.mean_ms)}{doubt}",
        str(latency.runs),
        figures.digits(row.first_run_ms),
        _ratio(row),
    )


def _ratio(row: Measurement) -> str:
    return "" if row.ratio is None else f"{row.ratio.paired:.2f} ± {row.ratio.paired_error:.2f}"


def _show_rates(console: Console, names: list[str], models: tuple[ModelProfile, ...]) -> None:
    tokens = any(row.tokens_per_s is not None for model in models for row in model.measurements)
    titles = ["samples/s", *(["tokens/s"] if tokens else []), "peak memory MB"]
    rows = []
    for name, model in zip(names, models, strict=True):
        for row in model.measurements:
            rates = [row.samples_per_s, *([row.tokens_per_s] if tokens else [])]
            memory = figures.megabytes(row.peak_memory_bytes)
            rows.append((name, _shape(row), *(figures.digits(rate) for rate in rates), memory))
    columns = [Column("model"), Column("shape", number=True)]
    console.table([*columns, *(Column(title, number=True) for title in titles)], rows)
    if any(row.cautions for model in models for row in model.measurements):
        console.line("* do not trust this figure much: see the warnings")


def _show_generation(console: Console, names: list[str], models: tuple[ModelProfile, ...]) -> None:
    """Print prompts, steps, and what both take of the memory."""
    console.heading("Prompts")
    _show_phase(console, names, models, "prefill", ("tokens", "tokens/s", "first token ms", "p90 ms"))
    console.heading("Decoding")
    _show_phase(console, names, models, "decode", ("cached", "tokens/s", "step ms", "p90 ms", "bandwidth"))
    _show_memory(console, names, models)


def _show_phase(
    console: Console, names: list[str], models: tuple[ModelProfile, ...], phase: str, titles: tuple[str, ...]
) -> None:
    ratio = ("time to the first model",) if len(models) > 1 else ()
    console.table(
        [Column("model"), *(Column(title, number=True) for title in (*titles, *ratio))],
        [
            (name, *_phase_cells(row)[: len(titles)], *([_ratio(row)] if ratio else []))
            for index in range(max(len(model.measurements) for model in models))
            for name, model in zip(names, models, strict=True)
            for row in model.measurements[index : index + 1]
            if row.phase == phase
        ],
    )


def _phase_cells(row: Measurement) -> tuple[str, ...]:
    return (
        _shape(row),
        "" if row.tokens_per_s is None else figures.digits(row.tokens_per_s),
        f"{figures.digits(row.latency.p50_ms)}{'*' if row.cautions else ''}",
        figures.digits(row.latency.p90_ms),
        "" if row.bandwidth_share is None else figures.share(row.bandwidth_share, 1),
    )


def _show_memory(console: Console, names: list[str], models: tuple[ModelProfile, ...]) -> None:
    console.heading("Memory")
    titles = (
        "weights read a step MB",
        "memory GB/s",
        "cache a token kB",
        "cache of the context MB",
        "peak MB",
    )
    rows = []
    for name, model in zip(names, models, strict=True):
        facts = model.generation
        if facts is not None:
            context = "" if facts.cache_bytes is None else figures.megabytes(facts.cache_bytes)
            cells = (
                figures.megabytes(facts.weights_read_bytes),
                figures.digits(facts.memory_read_bytes_per_s / 1e9),
                figures.digits(facts.cache_bytes_per_token / 1e3),
                f"{context} ({facts.context})" if context else "no limit",
                figures.megabytes(max(row.peak_memory_bytes for row in model.measurements)),
            )
            rows.append((name, *cells, "one buffer" if facts.shared_cache else "copied each step"))
    console.table([Column("model"), *(Column(title, number=True) for title in titles), Column("cache")], rows)
    console.line(
        "bandwidth: what a step must read (weights, keys, values) of what this machine reads meanwhile"
    )
    if any(row.cautions for model in models for row in model.measurements):
        console.line("* do not trust this figure much: see the warnings")


def _show_operators(console: Console, name: str, row: Measurement) -> None:
    if not row.operators:
        return
    console.heading(f"Operators of {name} at {_shape(row)}, under ONNX Runtime's profiler")
    titles = ("nodes", "ms", "share")
    console.table(
        [Column("operator"), *(Column(title, number=True) for title in titles), Column("on")],
        [
            (
                one.op,
                str(one.nodes),
                figures.digits(one.total_ms),
                figures.share(one.share, 1),
                one.provider.removesuffix("ExecutionProvider"),
            )
            for one in row.operators[:SHOWN]
        ],
    )
    rest = row.operators[SHOWN:]
    if rest:
        console.line(
            f"and {figures.plural(len(rest), 'other operator')}, "
            f"{figures.digits(sum(one.total_ms for one in rest))} ms (all: --json)"
        )
