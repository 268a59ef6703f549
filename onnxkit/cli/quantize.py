"""`onnxkit quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from onnxkit.cli import figures, options
from onnxkit.cli import quantize_options as own
from onnxkit.cli.console import Column, Console
from onnxkit.cli.settings import given, invocation, named
from onnxkit.errors import GateFailed, UsageError

if TYPE_CHECKING:
    from onnxkit.measure.divergence import Divergence
    from onnxkit.quantize import QuantizeOptions
    from onnxkit.quantize.formats import Algorithm
    from onnxkit.quantize.report import KeptLayer, Measurement, QuantizedLayer, QuantizeReport, SpeedChange
    from onnxkit.quantize.search.analysis import Analysis
    from onnxkit.quantize.search.gate import Attempt
    from onnxkit.quantize.search.quality import SliceDrop

EXAMPLES = """
onnxkit quantize build/bert build/bert-int8 --calibration train.jsonl --eval held-out.jsonl
onnxkit quantize build/bert build/bert-static --scheme int8-static --calibration train.jsonl
onnxkit quantize build/vit build/vit-int8 --scheme int8-static --calibration photos/ --samples 64
onnxkit quantize build/gpt2 build/gpt2-int4 --scheme int4-weight --calibration texts.txt
onnxkit quantize build/gpt2 build/gpt2-mixed --scheme mixed --bits-per-weight 5 --calibration texts.txt
onnxkit quantize build/bert build/bert-int8 --eval held-out.jsonl --max-drop 0.5
onnxkit quantize build/bert build/bert-layers --analyze --eval held-out.jsonl
onnxkit quantize build/bert build/bert-int8 --exclude-from build/bert-layers/exclude.txt
"""
RANDOM = "random"
WORST = 10
"""Rows shown of a list that is ordered from bad to good; --json has them all."""


def quantize(
    ctx: typer.Context,
    source: options.Directory,
    out: options.Out,
    scheme: own.Scheme = "int8-dynamic",
    target: own.Target = None,
    measure: own.Measure = True,
    task: options.Task = None,
    seed: options.Seed = 0,
    calibration: own.Calibration = None,
    samples: own.Samples = 128,
    max_length: own.MaxLength = None,
    calibration_cache: own.CalibrationCache = None,
    evaluation: own.Evaluation = None,
    column: options.Columns = None,
    format: own.Format = None,
    calibrator: own.Calibrator = None,
    per_channel: own.PerChannel = True,
    smooth_quant: own.SmoothQuant = None,
    bias_correction: own.BiasCorrection = False,
    algorithm: own.Algorithm = None,
    block_size: own.BlockSize = None,
    symmetric: own.Symmetric = None,
    accuracy_level: own.AccuracyLevel = None,
    embeddings: own.Embeddings = None,
    bits_per_weight: own.BitsPerWeight = None,
    include: own.Include = None,
    exclude: own.Exclude = None,
    exclude_from: own.ExcludeFrom = None,
    op_types: own.OpTypes = None,
    analyze: own.Analyze = False,
    max_drop: own.MaxDrop = None,
    min_cosine: own.MinCosine = None,
    max_kl: own.MaxKl = None,
    max_worst_slice: own.MaxWorstSlice = None,
    genai_config: options.GenaiConfig = False,
    overwrite: options.Overwrite = False,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a model smaller and faster, and measure what that costs."""
    _check(ctx, calibration, evaluation)
    from onnxkit.quantize import QuantizeOptions

    settings = QuantizeOptions(
        scheme=scheme,
        calibration=Path(calibration) if calibration not in (None, RANDOM) else calibration,
        calibration_cache=calibration_cache,
        calibrator=calibrator,
        samples=samples,
        max_length=max_length,
        format=format,
        per_channel=per_channel,
        smooth_quant=_smoothing(smooth_quant),
        bias_correction=bias_correction,
        algorithm=cast("Algorithm | None", algorithm),
        block_size=block_size,
        symmetric=symmetric,
        accuracy_level=accuracy_level,
        embeddings=embeddings,
        bits_per_weight=bits_per_weight,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        exclude_from=exclude_from,
        op_types=options.split_list(op_types),
        max_drop=max_drop,
        min_cosine=min_cosine,
        max_kl=max_kl,
        max_worst_slice=max_worst_slice,
        target=target,
        eval=evaluation,
        measure=measure,
        genai_config=genai_config,
        columns=options.split_pairs(column, "--column"),
        task=task,
        overwrite=overwrite,
        seed=seed,
        threads=threads,
    )
    if analyze:
        _analyze(ctx, source, out, settings)
    else:
        _quantize(ctx, source, out, settings)


def _quantize(ctx: typer.Context, source: Path, out: Path, settings: QuantizeOptions) -> None:
    from onnxkit.quantize import quantize_model

    try:
        report = quantize_model(source, out, settings, progress=ctx.obj, invocation=invocation(ctx))
    except GateFailed as failure:
        if failure.report is not None and not ctx.obj.json and not ctx.obj.quiet:
            show(ctx.obj, failure.report)
        raise
    ctx.obj.result("quantize", report, show)


def _analyze(ctx: typer.Context, source: Path, out: Path, settings: QuantizeOptions) -> None:
    from onnxkit.quantize import analyze_model

    ctx.obj.result("quantize", analyze_model(source, out, settings, progress=ctx.obj), show_analysis)


def _check(ctx: typer.Context, calibration: str | None, evaluation: Path | None) -> None:
    """Refuse options that would have no effect whatever the scheme, and a path that names nothing."""
    if calibration is not None and not calibration.strip():
        raise UsageError(f"{named(ctx, 'calibration')}: the path is empty")
    for name in ("samples", "max_length"):
        options.reject(
            given(ctx, name) and calibration is None and (name == "samples" or evaluation is None),
            named(ctx, name), "there is no --calibration set",
        )  # fmt: skip
    options.reject(
        bool(ctx.params["column"]) and calibration in (None, RANDOM) and evaluation is None,
        named(ctx, "column"), "there is no --calibration or --eval file",
    )  # fmt: skip


def _smoothing(text: str | None) -> str | float | None:
    """Read auto, off or a number; anything else is refused where the values are known."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


# --- the report --------------------------------------------------------------------------------


def show(console: Console, report: QuantizeReport) -> None:
    """Print what was quantized, how close it stays and how fast it is."""
    before, after = report.size_before_bytes, report.size_after_bytes
    console.facts(
        [
            ("wrote" if _holds(report) else "not written", report.out),
            ("scheme", f"{report.scheme}, {report.bits_per_weight:.2f} bits a weight"),
            ("for", report.hardware),
            ("layers", _layers(report)),
            ("calibration", _calibration(report)),
            ("size", f"{figures.size(before)} -> {figures.size(after)} ({report.size_ratio:.2f} x)"),
            ("measured", "" if report.measurement else f"neither accuracy nor speed ({_unmeasured(report)})"),
            ("took", figures.seconds(report.seconds)),
        ]
    )
    _show_formats(console, report.quantized)
    _show_kept(console, report.kept)
    _show_attempts(console, report.attempts)
    if report.measurement is not None:
        _show_measurement(console, report.measurement)


def _holds(report: QuantizeReport) -> bool:
    """Whether the limits hold; without limits there is nothing to break."""
    return not report.attempts or any(attempt.holds for attempt in report.attempts)


def _unmeasured(report: QuantizeReport) -> str:
    return "no CPU computes in bfloat16" if report.scheme == "bf16" else "--no-measure"


def _layers(report: QuantizeReport) -> str:
    if report.converted is not None:
        return f"{figures.plural(report.converted, 'node')} in half precision"
    return f"{len(report.quantized)} of {len(report.quantized) + len(report.kept)} quantized"


def _calibration(report: QuantizeReport) -> str:
    used = report.calibration
    if used is None:
        return ""
    return f"{used.method} over {figures.plural(used.samples, 'sample')} of {used.source}"


def _show_formats(console: Console, quantized: tuple[QuantizedLayer, ...]) -> None:
    """Print what layers became: one row a format."""
    groups: dict[str, list[QuantizedLayer]] = {}
    for layer in quantized:
        groups.setdefault(layer.format, []).append(layer)
    if not groups:
        return
    console.heading("Quantized")
    titles = ("layers", "weights", "bits a weight")
    rows = []
    for format, layers in groups.items():
        stored = [layer for layer in layers if layer.shares is None]
        weights = sum(layer.parameters for layer in stored)
        bits = sum(layer.bits_per_weight * layer.parameters for layer in stored) / max(1, weights)
        size = (f"{weights:,}", f"{bits:.2f}") if stored else ("shared", "-")
        rows.append((str(len(layers)), *size, format))
    console.table([*(Column(title, number=True) for title in titles), Column("format", wide=True)], rows)


def _show_kept(console: Console, kept: tuple[KeptLayer, ...]) -> None:
    """Print why layers stayed float: one row a reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in kept:
        groups.setdefault((layer.op_type, layer.reason), []).append(layer.name)
    rows = [(str(len(names)), op, why, names[0]) for (op, why), names in groups.items()]
    if rows:
        console.heading("Kept float")
        columns = (
            Column("layers", number=True), Column("operator"), Column("why", wide=True), Column("the first"),
        )  # fmt: skip
        console.table(columns, rows)


def _show_attempts(console: Console, attempts: tuple[Attempt, ...]) -> None:
    """Print what was tried for the limits, in order."""
    if not attempts:
        return
    console.heading("Tried")
    titles = ("cosine", "KL", "points lost", "worst class")
    console.table(
        [Column("variant"), *(Column(title, number=True) for title in titles), Column("limits", wide=True)],
        [
            (
                attempt.label,
                f"{attempt.quality.cosine:.5f}",
                figures.digits(attempt.quality.kl),
                "-" if attempt.quality.drop is None else f"{attempt.quality.drop:.2f}",
                "-" if (worst := attempt.quality.worst_slice) is None else f"{worst.name} {worst.drop:.2f}",
                "; ".join(attempt.broken) or "hold",
            )
            for attempt in attempts
        ],
    )


def _show_measurement(console: Console, measured: Measurement) -> None:
    compared = f"on {figures.plural(measured.samples, 'sample')} of {measured.measured_on}"
    console.heading(f"Against the input model, {f'on {measured.text}' if measured.text else compared}")
    facts = [("speed", _speed(measured.speed))]
    if measured.prompt is not None:
        facts.append(("", _speed(measured.prompt)))
    if measured.metric is not None:
        metric = measured.metric
        unit = "tokens" if metric.name == "perplexity" else "labelled"
        facts.append((metric.name, f"{metric.before:.4f} -> {metric.after:.4f} ({metric.samples:,} {unit})"))
    if measured.divergence is not None:
        facts += _divergence(measured.divergence)
    console.facts(facts)
    if measured.text:
        console.heading(f"Outputs, {compared}")
    console.table(
        [Column("output"), *(Column(title, number=True) for title in ("cosine", "SQNR dB", "max abs"))],
        [
            (one.output, f"{one.cosine:.5f}", f"{one.sqnr_db:.1f}", figures.digits(one.max_abs))
            for one in measured.agreement
        ],
    )
    _show_slices(console, measured.slices)


def _speed(speed: SpeedChange) -> str:
    return (
        f"{figures.milliseconds(speed.before_ms)} -> {figures.milliseconds(speed.after_ms)}, "
        f"{speed.ratio:.2f} ± {speed.ratio_error:.2f} of the time ({speed.shape}, "
        f"{figures.plural(speed.threads, 'thread')}, without tokenization)"
    )


def _divergence(found: Divergence) -> list[tuple[str, str]]:
    return [
        (
            "KL divergence",
            f"{figures.digits(found.kl_mean)} nats a token; 99.9 % are below "
            f"{figures.digits(found.kl_p999)}, the largest is {figures.digits(found.kl_max)}",
        ),
        ("top-1", f"{100 * found.top1_agreement:.1f} % of {found.tokens:,} tokens agree"),
    ]


def _show_slices(console: Console, slices: tuple[SliceDrop, ...]) -> None:
    lost = [one for one in slices if one.drop > 0]
    if not lost:
        return
    console.heading("The classes that lost most")
    titles = ("before", "after", "points lost", "samples")
    console.table(
        [Column("class"), *(Column(title, number=True) for title in titles)],
        [
            (one.name, f"{one.before:.4f}", f"{one.after:.4f}", f"{one.drop:.2f}", str(one.samples))
            for one in lost[:WORST]
        ],
    )


def show_analysis(console: Console, analysis: Analysis) -> None:
    """Print the layers that cost most when each alone is quantized."""
    proposed = sum(layer.proposed for layer in analysis.layers)
    console.facts(
        [
            ("wrote", analysis.out),
            ("scheme", analysis.scheme),
            ("measured", f"on {figures.plural(analysis.samples, 'sample')} of {analysis.measured_on}"),
            (
                "proposed",
                f"{figures.plural(proposed, 'layer')} to keep float (--exclude-from)",
            ),
            ("took", figures.seconds(analysis.seconds)),
        ]
    )
    console.heading(f"The layers that cost most, each quantized alone ({analysis.noise})")
    titles = ("noise", "of all", "SQNR dB", "points lost", "weights")
    console.table(
        [Column("layer"), *(Column(title, number=True) for title in titles), Column("format", wide=True)],
        [
            (
                f"{layer.name}{' *' if layer.proposed else ''}",
                f"{'' if layer.measured else '~'}{figures.digits(layer.noise)}",
                f"{100 * layer.share:.1f} %",
                "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
                "-" if layer.drop is None else f"{layer.drop:.2f}",
                f"{layer.parameters:,}",
                layer.format,
            )
            for layer in analysis.layers[:WORST]
        ],
    )
    console.line("* proposed to stay float; ~ estimated from its kind and block")
