"""`onnxkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxkit.cli import figures, options
from onnxkit.cli.console import Column, Console
from onnxkit.cli.settings import invocation
from onnxkit.errors import UsageError

if TYPE_CHECKING:
    from onnxkit.export.report import ExportReport

EXAMPLES = """
onnxkit export ./my-checkpoint build/my-model
onnxkit export sentence-transformers/all-MiniLM-L6-v2 build/minilm
onnxkit export -m bert-base-uncased --task fill-mask build/bert
onnxkit export ./checkpoint build/half --dtype fp16 --overwrite
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
    task: Task = "auto",
    exporter: Exporter = "auto",
    dtype: Dtype = "fp32",
    opset: Opset = 18,
    verify: Verify = True,
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
    source, target = _paths(model, out, model_option)
    from onnxkit.export import ExportOptions, export_model

    chosen: dict[str, Any] = {"exporter": exporter, "dtype": dtype}  # checked as choices
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
            overwrite=overwrite,
            seed=seed,
            **chosen,
        ),
        progress=ctx.obj,
        invocation=invocation(ctx),
    )
    ctx.obj.result("export", report, show)


def _paths(model: str | None, out: Path | None, model_option: str | None) -> tuple[str, Path]:
    """Return checkpoint and target of `export MODEL OUT` or `export -m MODEL OUT`."""
    if model_option is not None:
        if out is not None:
            raise UsageError("the model is given twice: as an argument and with --model")
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
            ("graph", f"{report.dtype}, opset {report.opset}, {_graph(report)}"),
            ("level", f"{report.level}: {report.level_reason}"),
            *(("gave up", f"{one.level}: {one.reason}") for one in report.trials if not one.accepted),
            ("size", figures.exact_size(report.size_bytes)),
            ("verified", _verified(report)),
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
            (way, spec.name, spec.dtype, figures.shape(spec.shape))
            for way, specs in (("input", report.inputs), ("output", report.outputs))
            for spec in specs
        ],
    )
    console.heading("Files")
    console.table(
        (Column("file"), Column("size", number=True)),
        [(file.name, figures.size(file.size_bytes)) for file in report.files],
    )


def _graph(report: ExportReport) -> str:
    regions = ", ".join(f"{count} {name}" for name, count in report.regions.items())
    counts = f"{figures.plural(report.nodes, 'node')}, {report.parameters:,} parameters"
    return f"{counts} ({regions})" if regions else counts


def _verifying(report: ExportReport) -> str:
    return figures.seconds(report.seconds.get("verify", 0.0))


def _verified(report: ExportReport) -> str:
    check = report.verification
    if check is None:
        return "no (--no-verify)"
    cases = figures.plural(len(check.cases), "case")
    judged = figures.judged(check.worst, check.tolerance)
    return f"against {check.against} on {cases}: {judged} ({check.output})"
