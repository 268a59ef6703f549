"""`onnxkit quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console
from onnxkit.cli.settings import given, invocation, named

if TYPE_CHECKING:
    from onnxkit.quantize.report import KeptLayer, QuantizeReport

EXAMPLES = """
onnxkit quantize build/bert build/bert-int8
onnxkit quantize build/bert build/bert-int8 --eval held-out.jsonl --column text=sentence
onnxkit quantize build/bert build/bert-static --scheme int8-static --calibration train.jsonl
onnxkit quantize build/vit build/vit-int8 --scheme int8-static --calibration photos/ --samples 64
onnxkit quantize build/bert build/bert-mixed --exclude 'layer\\.0\\.' --exclude pooler
onnxkit quantize build/gpt2 build/gpt2-int4 --scheme int4-weight --block-size 64
"""
SCHEMES = ("int8-dynamic", "int8-static", "int8-weight", "int4-weight")

Scheme = Annotated[
    str, options.option("--scheme", help="How weights and activations become integers.", choices=SCHEMES)
]
Calibration = Annotated[
    Path | None,
    options.option(
        "--calibration",
        metavar="FILE|DIR",
        panel=options.DATA,
        help="Samples that a static scheme takes the ranges of activations from.",
    ),
]
Samples = Annotated[
    int,
    options.option("--samples", metavar="N", help="Calibration samples used.", panel=options.DATA, min=1),
]
Evaluation = Annotated[
    Path | None,
    options.option(
        "--eval",
        metavar="FILE|DIR",
        panel=options.DATA,
        help="Samples on which accuracy and speed are compared with the input model.",
    ),
]
PerChannel = Annotated[
    bool,
    options.option(
        "--per-channel/--per-tensor", help="One weight scale per output channel, or one per tensor."
    ),
]
BlockSize = Annotated[
    int | None,
    options.option(
        "--block-size",
        metavar="N",
        help="Weights that share a scale in int8-weight and int4-weight: 16, 32, 64, 128, 256.",
        show_default="32",
    ),
]
Symmetric = Annotated[
    bool | None,
    options.option(
        "--symmetric/--asymmetric",
        help="Blocks without zero points (faster), or with.",
        show_default="symmetric",
    ),
]
AccuracyLevel = Annotated[
    int | None,
    options.option(
        "--accuracy-level",
        metavar="0-4",
        help="What blocks are multiplied in: 0 any, 1 fp32, 2 fp16, 3 bf16, 4 int8.",
        show_default="4",
    ),
]
Include = Annotated[
    list[str] | None,
    options.option("--include", metavar="REGEX", help="Quantize only nodes whose name matches (repeat)."),
]
Exclude = Annotated[
    list[str] | None,
    options.option("--exclude", metavar="REGEX", help="Keep nodes float whose name matches (repeat)."),
]
OpTypes = Annotated[
    str | None,
    options.option("--op-types", metavar="OP,…", help="Operator types to quantize: MatMul,Gemm,Conv."),
]
Measure = Annotated[
    bool,
    options.option("--measure/--no-measure", help="Compare accuracy and speed with the input model."),
]


def quantize(
    ctx: typer.Context,
    source: options.Directory,
    out: options.Out,
    scheme: Scheme = "int8-dynamic",
    calibration: Calibration = None,
    samples: Samples = 128,
    evaluation: Evaluation = None,
    column: options.Columns = None,
    per_channel: PerChannel = True,
    block_size: BlockSize = None,
    symmetric: Symmetric = None,
    accuracy_level: AccuracyLevel = None,
    include: Include = None,
    exclude: Exclude = None,
    op_types: OpTypes = None,
    measure: Measure = True,
    genai_config: options.GenaiConfig = False,
    task: options.Task = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Quantize a model to int8 or int4, and measure what it costs and what it gains."""
    _check(ctx, calibration, evaluation)
    from onnxkit.quantize import QuantizeOptions, quantize_model

    report = quantize_model(
        source,
        out,
        QuantizeOptions(
            scheme=scheme,
            calibration=calibration,
            samples=samples,
            per_channel=per_channel,
            block_size=block_size,
            symmetric=symmetric,
            accuracy_level=accuracy_level,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            op_types=options.split_list(op_types),
            eval=evaluation,
            measure=measure,
            genai_config=genai_config,
            columns=options.split_pairs(column, "--column"),
            task=task,
            overwrite=overwrite,
            seed=seed,
            threads=threads,
        ),
        progress=ctx.obj,
        invocation=invocation(ctx),
    )
    ctx.obj.result("quantize", report, show)


def _check(ctx: typer.Context, calibration: Path | None, evaluation: Path | None) -> None:
    """Refuse options that would have no effect."""
    options.reject(
        given(ctx, "samples") and calibration is None, named(ctx, "samples"), "there is no --calibration set"
    )
    options.reject(
        evaluation is not None and not ctx.params["measure"],
        named(ctx, "evaluation"),
        "--no-measure measures nothing",
    )
    options.reject(
        bool(ctx.params["column"]) and calibration is None and evaluation is None,
        named(ctx, "column"), "there is no --calibration or --eval file",
    )  # fmt: skip


def show(console: Console, report: QuantizeReport) -> None:
    """Print what was quantized, how close it stays and how fast it is."""
    layers = len(report.quantized) + len(report.kept)
    before, after = report.size_before_bytes, report.size_after_bytes
    granularity = "per channel" if report.per_channel else "per tensor"
    granularity = granularity if report.blocks is None else f"in blocks of {report.blocks.size}"
    console.facts(
        [
            ("wrote", report.out),
            ("scheme", f"{report.scheme}, {report.weight_bits}-bit weights {granularity}"),
            ("", report.weight_grid_reason),
            ("layers", f"{len(report.quantized)} of {layers} quantized"),
            ("calibration", _calibration(report)),
            ("size", f"{figures.size(before)} -> {figures.size(after)} ({report.size_ratio:.2f} x)"),
            ("measured", "" if report.measurement else "neither accuracy nor speed (--no-measure)"),
            ("took", figures.seconds(report.seconds)),
        ]
    )
    _show_kept(console, report.kept)
    _show_measurement(console, report)


def _calibration(report: QuantizeReport) -> str:
    used = report.calibration
    if used is None:
        return ""
    return f"{used.method} over {figures.plural(used.samples, 'sample')} of {used.source}"


def _show_kept(console: Console, kept: tuple[KeptLayer, ...]) -> None:
    """Print why layers stayed float: one row a reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in kept:
        groups.setdefault((layer.op_type, layer.reason), []).append(layer.name)
    if groups:
        console.heading("Kept float")
        console.table(
            (
                Column("layers", number=True),
                Column("operator"),
                Column("why", wide=True),
                Column("the first"),
            ),
            [(str(len(names)), op, why, names[0]) for (op, why), names in groups.items()],
        )


def _show_measurement(console: Console, report: QuantizeReport) -> None:
    measured = report.measurement
    if measured is None:
        return
    console.heading(
        f"Against the input model, on {figures.plural(measured.samples, 'sample')} of {measured.measured_on}"
    )
    speed = measured.speed
    facts = [
        (
            "speed",
            f"{figures.milliseconds(speed.before_ms)} -> {figures.milliseconds(speed.after_ms)}, "
            f"{speed.ratio:.2f} ± {speed.ratio_error:.2f} of the time ({speed.shape}, "
            f"{figures.plural(speed.threads, 'thread')}, without tokenization)",
        )
    ]
    if measured.metric is not None:
        metric = measured.metric
        facts.append((metric.name, f"{metric.before:.4f} -> {metric.after:.4f} ({metric.samples} labelled)"))
    console.facts(facts)
    console.table(
        [Column("output"), *(Column(title, number=True) for title in ("cosine", "SQNR dB", "max abs"))],
        [
            (one.output, f"{one.cosine:.5f}", f"{one.sqnr_db:.1f}", figures.digits(one.max_abs))
            for one in measured.agreement
        ],
    )
