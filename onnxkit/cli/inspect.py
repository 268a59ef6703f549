"""`onnxkit inspect`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console

if TYPE_CHECKING:
    from onnxkit.artifact import HistoryEntry, Verification
    from onnxkit.measure.inspect import ComponentReport, InspectReport, QuantizedShare

EXAMPLES = """
onnxkit inspect build/bert
onnxkit inspect model.onnx --json
"""


def inspect(
    ctx: typer.Context,
    model: options.Directory,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model holds: inputs, outputs, operators, weights, history."""
    from onnxkit.measure.inspect import inspect_model

    report = inspect_model(model)
    ctx.obj.result("inspect", report, show, data=True)


SHOWN = 12


def show(console: Console, report: InspectReport) -> None:
    """Print the directory, each graph, and what made it."""
    verified = report.verified
    console.facts(
        [
            ("path", report.path),
            ("task", report.task or "(cannot be told)"),
            (
                "size",
                f"{figures.exact_size(report.size_bytes)}, {figures.plural(len(report.files), 'file')}",
            ),
            ("verified", "no" if verified is None else _verified(verified)),
        ]
    )
    for component in report.components:
        _show_component(console, component)
    _show_history(console, report.history)


def _verified(verified: Verification) -> str:
    return f"against {verified.against}, {figures.judged(verified.worst, verified.tolerance)}"


def _quantized(share: QuantizedShare) -> str:
    told = f"{share.nodes} of {share.linear_nodes} linear nodes"
    if not share.nodes:
        return told
    counts = Counter(share.layers.values())
    bits = ", ".join(f"{count} of {width} bits" for width, count in sorted(counts.items()))
    told += f" ({bits}), {figures.share(share.parameters, share.linear_parameters)} of their parameters"
    return f"{told}, {share.bits_per_weight:.2f} bits a weight"


def _show_component(console: Console, component: ComponentReport) -> None:
    console.heading(f"{component.name} ({component.file})")
    console.facts(
        [
            ("opset", ", ".join(f"{domain} {version}" for domain, version in component.opsets.items())),
            ("made by", f"{component.producer}, IR {component.ir_version}"),
            ("parameters", f"{component.parameters:,} in {figures.exact_size(component.weight_bytes)}"),
            ("quantized", _quantized(component.quantized)),
            ("fused", _counts(component.fused)),
            ("regions", _counts(component.regions)),
        ]
    )
    console.line()
    console.table(
        (Column("in/out"), Column("name"), Column("dtype"), Column("shape", wide=True)),
        [
            (way, spec.name, spec.dtype, figures.shape(spec.shape))
            for way, specs in (("input", component.inputs), ("output", component.outputs))
            for spec in specs
        ],
    )
    _show_operators(console, component)
    console.line()
    console.table(
        (Column("dtype of weights"), Column("MB", number=True)),
        [(dtype, figures.megabytes(count)) for dtype, count in component.bytes_by_dtype.items()],
    )


def _show_operators(console: Console, component: ComponentReport) -> None:
    """Print the operators with most weights, then the most frequent others."""
    weights, nodes = component.bytes_by_operator, component.nodes_by_type
    names = sorted(nodes, key=lambda name: (-weights.get(name, 0), -nodes[name]))
    console.line()
    console.table(
        (Column("operator"), Column("nodes", number=True), Column("MB of weights", number=True)),
        [
            (name, str(nodes[name]), figures.megabytes(weights[name]) if name in weights else "")
            for name in names[:SHOWN]
        ],
    )
    rest = sum(nodes[name] for name in names[SHOWN:])
    if rest:
        others = figures.plural(len(names) - SHOWN, "other operator")
        console.line(f"and {figures.plural(rest, 'node')} of {others} (all: --json)")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _show_history(console: Console, history: tuple[HistoryEntry, ...]) -> None:
    if not history:
        return
    console.heading("History")
    for entry in history:
        console.line(f"{entry.created}  {entry.stage}")
        if entry.argv:
            console.line(f"  {shlex.join(entry.argv)}")
