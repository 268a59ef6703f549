"""`onnxkit optimize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console
from onnxkit.cli.settings import invocation

if TYPE_CHECKING:
    from onnxkit.optimize.report import CheckResult, ComponentChange, OptimizeReport, SpeedRatio

EXAMPLES = """
onnxkit optimize build/bert build/bert-o2
onnxkit optimize build/bert build/bert-o3 -O3
onnxkit optimize build/bert build/bert-gpu --ep cuda -O4
onnxkit optimize build/bert build/bert-o2 --disable-fusion gelu --json
onnxkit optimize detector.onnx build/detector --inputs photo.npz
"""

Level = Annotated[
    int,
    options.option(
        "--level",
        "-O",
        metavar="0-4",
        min=0,
        max=4,
        help="0 none; 1 clean-up; 2 the provider's operators; 3 approximations too; 4 fp16 too.",
    ),
]
DisableFusion = Annotated[
    list[str] | None,
    options.option("--disable-fusion", metavar="NAME", help="Leave out a fusion of this name (repeat)."),
]


Measure = Annotated[
    bool, options.option("--measure/--no-measure", help="Compare the speed with the input model's.")
]


Inputs = Annotated[
    Path | None,
    options.option(
        "--inputs",
        metavar="FILE.npz",
        help="Arrays to check and time the result on, instead of made-up ones.",
    ),
]


def optimize(
    ctx: typer.Context,
    source: options.Directory,
    out: options.Out,
    level: Level = 2,
    disable_fusion: DisableFusion = None,
    measure: Measure = True,
    inputs: Inputs = None,
    genai_config: options.GenaiConfig = False,
    task: options.Task = None,
    ep: options.Ep = "cpu",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Rewrite a model's graph for an execution provider, checked against its input."""
    from onnxkit.optimize import OptimizeOptions, optimize_model

    report = optimize_model(
        source,
        out,
        OptimizeOptions(
            level=level,
            ep=ep,
            disable_fusions=tuple(disable_fusion or ()),
            task=task,
            measure=measure,
            genai_config=genai_config,
            overwrite=overwrite,
            seed=seed,
            inputs=inputs,
            threads=threads,
        ),
        progress=ctx.obj,
        invocation=invocation(ctx),
    )
    ctx.obj.result("optimize", report, show)


def show(console: Console, report: OptimizeReport) -> None:
    """Print what became of each graph: nodes, fused operators, differences, speed."""
    before, after = report.size_before_bytes, report.size_after_bytes
    console.facts(
        [
            ("wrote", report.out),
            ("level", f"-O{report.level} for {report.provider}"),
            ("size", f"{figures.size(before)} -> {figures.size(after)}"),
            ("took", figures.seconds(report.seconds)),
        ]
    )
    for component in report.components:
        _show_component(console, component)


def _show_component(console: Console, change: ComponentChange) -> None:
    console.heading(f"Graph {change.name}")
    lowered = ", ".join(f"{name} {count}" for name, count in change.lowered.items())
    facts = [("rewritten", lowered + (" (recognized by structure)" if change.recognized else ""))]
    facts += [("kept", f"{one.count} {one.op}: {one.reason}") for one in change.kept]
    facts += [
        ("left out", f"{one.name}: differs by {figures.difference(one.worst)} ({one.output}, {one.case})")
        for one in change.dropped
    ]
    if change.shared_cache:
        facts.append(("cache", "keys and values stay in place: a step copies none"))
    if change.kept_float32:
        facts.append(("in float32", figures.plural(len(change.kept_float32), "node")))
    console.facts([*facts, ("checked", _checked(change.check)), ("speed", _speed(change.speed))])
    console.line()
    _show_nodes(console, change)


def _checked(check: CheckResult) -> str:
    cases = figures.plural(len(check.cases), "case")
    where = f" ({check.output}, {check.case})" if check.output else ""
    return f"on {cases}: {figures.judged(check.worst, check.tolerance)}{where}"


def _speed(speed: SpeedRatio | None) -> str:
    if speed is None:
        return "not measured"
    return (
        f"{figures.milliseconds(speed.before_ms)} -> {figures.milliseconds(speed.after_ms)}, "
        f"{speed.ratio:.3f} ± {speed.error:.3f} of the time ({speed.case}, "
        f"{figures.plural(speed.threads, 'thread')})"
    )


def _show_nodes(console: Console, change: ComponentChange) -> None:
    """Print nodes by operator before and after, the most frequent first."""
    before, after = change.nodes_before, change.nodes_after
    names = sorted({*before, *after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    rows = [(name, str(before.get(name, 0)), str(after.get(name, 0))) for name in names]
    rows.append(("all", str(sum(before.values())), str(sum(after.values()))))
    columns = (Column("operator"), Column("nodes before", number=True), Column("after", number=True))
    console.table(columns, rows)
