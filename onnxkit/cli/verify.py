"""`onnxkit verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console

if TYPE_CHECKING:
    from onnxkit.measure.verify import VerifyReport

EXAMPLES = """
onnxkit verify build/bert
onnxkit verify build/bert --ep cuda --json
"""


def verify(
    ctx: typer.Context,
    model: options.Directory,
    ep: options.Ep = "cpu",
    ep_option: options.EpOption = None,
    threads: options.Threads = None,
    graph_optimization: options.GraphOptimization = "all",
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check a model directory: every file's digest, and its outputs against PyTorch's."""
    from onnxkit.measure.verify import verify_model

    report = verify_model(
        model,
        runtime=options.runtime_options(ep, ep_option, threads, graph_optimization),
        progress=ctx.obj,
    )
    ctx.obj.result("verify", report, show)


def show(console: Console, report: VerifyReport) -> None:
    """Print what was compared, and the difference of every output."""
    worst = report.worst
    allowed = f", allowed {report.tolerance:.0e}" if report.tolerance is not None else ""
    console.facts(
        [
            ("verified" if report.passed else "FAILED", report.path),
            ("files", f"{figures.plural(report.files, 'digest')} match" if report.files else "no digests"),
            ("against", report.against),
            ("worst", f"{figures.difference(worst.relative)} ({worst.output}, {worst.case}){allowed}"),
            ("onnxruntime", f"{report.machine.onnxruntime}, {figures.placement(report.session.nodes)} nodes"),
            ("took", figures.seconds(report.wall_s)),
        ]
    )
    titles = ("relative", "max abs", "cosine")
    console.table(
        [Column("case"), Column("output"), *(Column(title, number=True) for title in titles)],
        [
            (
                one.case,
                one.output,
                figures.difference(one.relative),
                figures.difference(one.max_abs),
                f"{one.cosine:.7f}",
            )
            for one in report.outputs
        ],
    )
