"""`onnxkit export`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console
from onnxkit.cli.settings import invocation
from onnxkit.errors import UsageError

if TYPE_CHECKING:
    from onnxkit.export.report import ExportedGraph, ExportReport, GenerationCheck, KeptQuantization
    from onnxkit.runtime import TensorSpec

EXAMPLES = """
onnxkit export ./my-checkpoint build/my-model
onnxkit export sentence-transformers/all-MiniLM-L6-v2 build/minilm
onnxkit export -m bert-base-uncased --task fill-mask build/bert
onnxkit export ./checkpoint build/half --dtype fp16 --overwrite
onnxkit export --gguf SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2
onnxkit export ./model-awq build/int4 --keep-quantization
onnxkit export ./base-model build/tuned --adapter ./lora --genai-config
onnxkit export ./checkpoint build/model --json | jq .result.size_bytes
"""

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A local checkpoint, or an id on the Hugging Face Hub."),
]
Out = Annotated[Path | None, typer.Argument(metavar="OUT", help="The directory to write.")]
ModelOption = Annotated[
    str | None,
    options.option("--model", "-m", metavar="MODEL", help="The same as MODEL, as other tools spell it."),
]
Gguf = Annotated[
    Path | None,
    options.option(
        "--gguf", metavar="FILE", help="A GGUF file as the model; its weights are dequantized unless kept."
    ),
]
Adapter = Annotated[
    Path | None,
    options.option("--adapter", metavar="DIR", help="A LoRA adapter (peft) to merge into the weights."),
]
Layout = Annotated[
    str,
    options.option(
        "--layout",
        choices=("onnxkit", "optimum"),
        help="optimum: encoder-decoders as optimum and transformers.js expect them, over the same weights.",
    ),
]
Task = Annotated[
    str,
    options.option(
        "--task",
        "-t",
        metavar="TASK",
        help="What the model does, as transformers names its pipelines; auto asks the checkpoint.",
    ),
]
Exporter = Annotated[
    str,
    options.option(
        "--exporter",
        choices=("auto", "trace", "native"),
        help="trace: one operator per attention, mask and norm; native: transformers' own.",
    ),
]
Dtype = Annotated[
    str, options.option("--dtype", help="Type of the weights.", choices=("fp32", "fp16", "bf16"))
]
Opset = Annotated[int, options.option("--opset", metavar="N", help="Version of ONNX's operators.", min=18)]
KeepQuantization = Annotated[
    bool,
    options.option(
        "--keep-quantization",
        help="Read the blocks of an AWQ, GPTQ or GGUF checkpoint as they are, not dequantized.",
    ),
]
AccuracyLevel = Annotated[
    int | None,
    options.option(
        "--accuracy-level",
        metavar="0|1|4",
        help="What products of kept blocks compute in: 4 int8, fast, the default; 0, 1 float32, exact.",
    ),
]
Verify = Annotated[
    bool,
    options.option("--verify/--no-verify", help="Compare ONNX Runtime with PyTorch on new shapes."),
]
TrustRemoteCode = Annotated[
    bool, options.option("--trust-remote-code", help="Run Python code that the checkpoint brings.")
]
AllowPickle = Annotated[
    bool, options.option("--allow-pickle", help="Read .bin weights (safely: weights only).")
]
Revision = Annotated[
    str | None,
    options.option("--revision", metavar="REV", help="Branch, tag or commit.", panel="Hub"),
]
Subfolder = Annotated[
    str, options.option("--subfolder", metavar="DIR", help="Folder inside the repository.", panel="Hub")
]
Token = Annotated[
    str | None,
    options.option(
        "--token",
        metavar="TOKEN",
        panel="Hub",
        help="Access token; better in ONNXKIT_TOKEN, where other users' `ps` does not show it.",
    ),
]
Offline = Annotated[bool, options.option("--offline", help="Use what is in the cache only.", panel="Hub")]


def export(
    ctx: typer.Context,
    model: Model = None,
    out: Out = None,
    model_option: ModelOption = None,
    gguf: Gguf = None,
    adapter: Adapter = None,
    task: Task = "auto",
    exporter: Exporter = "auto",
    dtype: Dtype = "fp32",
    opset: Opset = 18,
    keep_quantization: KeepQuantization = False,
    accuracy_level: AccuracyLevel = None,
    verify: Verify = True,
    layout: Layout = "onnxkit",
    genai_config: options.GenaiConfig = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    offline: Offline = False,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Export a Transformers checkpoint to ONNX, checked against PyTorch."""
    source, target = _paths(model, out, model_option, gguf)
    from onnxkit.export import ExportOptions, export_model

    chosen: dict[str, Any] = {"exporter": exporter, "dtype": dtype, "layout": layout}  # checked as choices
    report = export_model(
        source,
        target,
        ExportOptions(
            task=task,
            verify=verify,
            opset=opset,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            revision=revision,
            subfolder=subfolder,
            token=token,
            offline=offline,
            adapter=adapter,
            genai_config=genai_config,
            keep_quantization=keep_quantization,
            accuracy_level=accuracy_level,
            overwrite=overwrite,
            seed=seed,
            **chosen,
        ),
        progress=ctx.obj,
        invocation=invocation(ctx),
    )
    ctx.obj.result("export", report, show)


def _paths(
    model: str | None, out: Path | None, model_option: str | None, gguf: Path | None
) -> tuple[str, Path]:
    """Return checkpoint and target of `export MODEL OUT`, `-m MODEL OUT` or `--gguf FILE OUT`."""
    if gguf is not None:
        options.reject(model_option is not None, "--gguf", "--model names another model")
        if gguf.is_dir():
            raise UsageError(f"--gguf {gguf} is a directory: name the file")
        model_option = str(gguf)
    if model_option is not None:
        if out is not None:
            raise UsageError("the model is given twice: as an argument and with --model or --gguf")
        model, out = model_option, None if model is None else Path(model)
    if not model:
        raise UsageError("missing argument MODEL (see onnxkit export --help)")
    if out is None:
        raise UsageError("missing argument OUT, the directory to write (see onnxkit export --help)")
    return model, out


def show(console: Console, report: ExportReport) -> None:
    """Print what was written, at which level and why, and how far it is from PyTorch."""
    console.facts(
        [
            ("wrote", report.out),
            ("from", report.source + (f" at {report.commit}" if report.commit else "")),
            ("task", f"{report.task} ({report.model_class})"),
            ("graph", f"{report.dtype}, opset {report.opset}"),
            *((_title(report, one.part), _graph(one)) for one in report.graphs),
            *(
                ("level" if one.accepted else "gave up", f"{_of(report, one.part)}{one.level}: {one.reason}")
                for one in report.trials
            ),
            *((("kept", _kept(report.kept)),) if report.kept is not None else ()),
            ("size", figures.exact_size(report.size_bytes)),
            ("verified", _verified(report)),
            *((("generates", _generates(report.generation)),) if report.generation is not None else ()),
            (
                "took",
                f"{figures.seconds(report.total_s)}, and {_verifying(report)} for the verification",
            ),
        ]
    )
    console.heading("Inputs and outputs")
    console.table(
        (Column("in/out"), Column("name"), Column("dtype"), Column("shape", wide=True)),
        [
            (f"{_of(report, graph.part)}{way}", name, spec.dtype, figures.shape(spec.shape))
            for graph in report.graphs
            for way, specs in (("input", graph.inputs), ("output", graph.outputs))
            for name, spec in _once_a_layer(specs).items()
        ],
    )
    console.heading("Files")
    console.table(
        (Column("file"), Column("size", number=True)),
        [(file.name, figures.size(file.size_bytes)) for file in report.files],
    )


def _graph(graph: ExportedGraph) -> str:
    regions = ", ".join(f"{count} {name}" for name, count in graph.regions.items())
    counts = f"{figures.plural(graph.nodes, 'node')}, {graph.parameters:,} parameters"
    return f"{counts} ({regions})" if regions else counts


def _title(report: ExportReport, part: str) -> str:
    return part if len(report.graphs) > 1 else "holds"


def _of(report: ExportReport, part: str) -> str:
    """Which graph a line is about, where there are several."""
    return f"{part} " if len(report.graphs) > 1 else ""


def _once_a_layer(specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    """Inputs or outputs by name; those of a cache's layers as one, `past_key_values.N.key`."""
    named: dict[str, TensorSpec] = {}
    for spec in specs:
        named.setdefault(re.sub(r"\.\d+\.", ".N.", spec.name), spec)
    return named


def _kept(kept: KeptQuantization) -> str:
    bits = ", ".join(f"{count} of {width} bits" for width, count in kept.bits.items())
    told = f"{figures.plural(kept.weights, 'weight')} of {kept.format} ({bits}), bit by bit: "
    told += f"{kept.bits_per_weight:.2f} bits a weight"
    return told + (f"; {len(kept.floats)} dequantized" if kept.floats else "")


def _generates(check: GenerationCheck) -> str:
    told = f"{check.tokens} tokens in each of {check.rows} rows as transformers' greedy generate"
    if not check.near_ties:
        return told
    steps = ", ".join(str(step + 1) for step in check.near_ties)
    return f"{told}; {figures.plural(len(check.near_ties), 'row')} up to a near tie (token {steps})"


def _verifying(report: ExportReport) -> str:
    return figures.seconds(report.seconds.get("verify", 0.0))


def _verified(report: ExportReport) -> str:
    check = report.verification
    if check is None:
        return "no (--no-verify)"
    cases = figures.plural(len(check.cases), "case")
    judged = figures.judged(check.worst, check.tolerance)
    told = f"against {check.against} on {cases}: {judged} ({check.output})"
    if report.kept is not None and report.kept.accuracy_level == 4:
        told += "; computed in float32, while the file rounds activations (accuracy level 4)"
    return told
