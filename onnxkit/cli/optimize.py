"""`onnxkit optimize`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from onnxkit.cli import options
from onnxkit.cli.settings import invocation

EXAMPLES = """
onnxkit optimize build/bert build/bert-o2
onnxkit optimize build/bert build/bert-o3 -O3
onnxkit optimize build/bert build/bert-gpu --ep cuda -O4
onnxkit optimize build/bert build/bert-o2 --disable-fusion gelu --json
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
    options.option("--disable-fusion", metavar="NAME", help="Leave this fusion out (repeat)."),
]


def optimize(
    ctx: typer.Context,
    source: options.Directory,
    out: options.Out,
    level: Level = 2,
    disable_fusion: DisableFusion = None,
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
            level=level, ep=ep, disable_fusions=tuple(disable_fusion or ()), overwrite=overwrite,
            seed=seed, threads=threads,
        ),
        progress=ctx.obj,
        invocation=invocation(ctx),
    )  # fmt: skip
    ctx.obj.result("optimize", report, show)


def show(console: Any, report: Any) -> None:
    """Placeholder."""
    console.line(str(report))
